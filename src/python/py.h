/* py.h - between the files of the Python room: what a Python object of ours holds, and the few conversions that
 * everybody needs. The room turns Python calls into tr_apply() and tensors into Python objects; it computes nothing.
 *
 * Conventions: functions returning PyObject * give a new reference or NULL with an exception set; functions returning int
 * give 0, or -1 with an exception set. `takes` says that a reference is consumed, also on failure. */
#ifndef TR_PYTHON_PY_H
#define TR_PYTHON_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "terra/tracer.h"

#if PY_VERSION_HEX < 0x030b0000
#error "CPython 3.11 or newer is needed"
#endif
#ifdef Py_GIL_DISABLED
#error "free-threaded builds of CPython are not supported: Terra's front relies on the GIL"
#endif

/* A tensor's Python object. The tr_tensor points back (t->py, borrowed), so that a tensor has one object at a time. */
typedef struct py_tensor {
    PyObject_HEAD tr_tensor *t; /* owned */
    PyObject *dict;
    PyObject *weaks;
    PyObject *hooks; /* list of py_hook, or NULL: mirrors what t's hook list holds, for the garbage collector */
} py_tensor;

typedef struct py_dtype {
    PyObject_HEAD tr_dtype dtype;
} py_dtype;

/* The room's state. One interpreter per process; all under the GIL. */
typedef struct py_state {
    PyTypeObject *tensor_type, *dtype_type, *node_type, *hook_type, *export_type, *custom_type;
    PyObject *dtypes[TR_DTYPE_COUNT];
    tr_dtype default_dtype;
    /* given by the Python half at import: */
    PyObject *size_type;    /* terra.Size, a subclass of tuple */
    PyObject *cpu;          /* terra.device('cpu') */
    PyObject *device_check; /* device_check(obj): raises unless it names the CPU */
    PyObject *repr;         /* repr(tensor) */
} py_state;
extern py_state tr__py;

/* ---- py_error.c ---- */
/* Raises what `status` (not TR_OK) stands for. Always NULL. */
PyObject *tr__py_raise(tr_status status);
static inline int tr__py_check(tr_status status) {
    if (TR_LIKELY(status == TR_OK))
        return 0;
    tr__py_raise(status);
    return -1;
}

/* ---- py_tensor.c ---- */
static inline bool tr__py_is_tensor(PyObject *o) {
    return Py_TYPE(o) == tr__py.tensor_type || PyType_IsSubtype(Py_TYPE(o), tr__py.tensor_type);
}
static inline tr_tensor *tr__py_t(PyObject *o) {
    return ((py_tensor *) o)->t;
}
/* The object of t. Takes the reference. */
PyObject *tr__py_wrap(tr_tensor *t);
/* A tensor's object, or None for NULL; borrows t. */
PyObject *tr__py_wrap_borrowed(tr_tensor *t);
PyObject *tr__py_size(int n, const int64_t *values);
int tr__py_tensor_init(PyObject *module);

/* ---- py_ops.c ---- */
extern PyMethodDef tr__py_op_methods[]; /* Tensor.<op>, Tensor.<op>_ */
int tr__py_ops_prepare(void);           /* specs of the table, before types are made */
int tr__py_ops_init(PyObject *module);
/* A number: 1, and `in` is set; 0 when o is none; -1 with an exception. */
int tr__py_number(PyObject *o, tr_input *in);
/* A tensor or a number; as above. */
int tr__py_operand(PyObject *o, tr_input *in);
int tr__py_int(PyObject *o, int64_t *out);
/* Reads sizes from `n` arguments, or from one tuple or list; at most TR_MAX_DIMS. */
int tr__py_sizes(const char *what, PyObject *const *args, Py_ssize_t n, int64_t *out, int *count);
/* None: -1 where optional. */
int tr__py_dtype_arg(const char *what, PyObject *o, tr_dtype *out);
PyObject *tr__py_call(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, bool in_place);

/* ---- py_index.c ---- */
PyObject *tr__py_getitem(PyObject *self, PyObject *key);
int tr__py_setitem(PyObject *self, PyObject *key, PyObject *value);

/* ---- py_interop.c ---- */
int tr__py_interop_init(PyObject *module);
/* torch.tensor's conversion of Python data: lists, numbers, arrays. dtype -1: found out. New reference. */
tr_tensor *tr__py_from_data(PyObject *data, int dtype);
PyObject *tr__py_from_numpy(PyObject *module, PyObject *array);
PyObject *tr__py_tolist(PyObject *self, PyObject *unused);
PyObject *tr__py_numpy(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames);
PyObject *tr__py_dlpack(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames);
/* A dtype of ours from a buffer's format; -1 if there is none. */
int tr__py_format_dtype(const char *format, Py_ssize_t itemsize);

/* ---- py_autocast.c ---- */
int tr__py_autocast_init(PyObject *module);

/* ---- py_autograd.c ---- */
int tr__py_autograd_init(PyObject *module);
int tr__py_test_init(PyObject *module);
PyObject *tr__py_wrap_node(tr_node *node); /* borrows; None for NULL */
int tr__py_hooks_traverse(py_tensor *self, visitproc visit, void *arg);
void tr__py_hooks_clear(py_tensor *self);
PyObject *tr__py_register_hook(PyObject *self, PyObject *fn);
PyObject *tr__py_register_post_hook(PyObject *self, PyObject *fn);
PyObject *tr__py_remove_hook(PyObject *self, PyObject *id);

/* ---- py_site.c ---- */
int tr__py_site_init(PyObject *module);
uint32_t tr__py_site(void);

#endif
