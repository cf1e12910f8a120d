/* py_tensor.c - the type Tensor: slots straight into dispatch, and the properties and methods that are hot or need C.
 * Everything else is attached from Python (terra/_tensor.py, terra/_ops.py). */
#include "python/py.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------ objects */

static PyObject *new_object(PyTypeObject *type, tr_tensor *t) {
    py_tensor *self = (py_tensor *) type->tp_alloc(type, 0);
    if (self == NULL) {
        tr_tensor_release(t);
        return NULL;
    }
    self->t = t;
    t->py = self;
    return (PyObject *) self;
}

PyObject *tr__py_wrap(tr_tensor *t) {
    if (t->py == NULL)
        return new_object(tr__py.tensor_type, t);
    PyObject *o = Py_NewRef(t->py);
    tr_tensor_release(t);
    return o;
}

PyObject *tr__py_wrap_borrowed(tr_tensor *t) {
    if (t == NULL)
        Py_RETURN_NONE;
    if (t->py != NULL)
        return Py_NewRef(t->py);
    tr_tensor_retain(t);
    return new_object(tr__py.tensor_type, t);
}

static int tensor_traverse(PyObject *o, visitproc visit, void *arg) {
    py_tensor *self = (py_tensor *) o;
    Py_VISIT(Py_TYPE(o));
    Py_VISIT(self->dict);
    return tr__py_hooks_traverse(self, visit, arg);
}

static int tensor_clear(PyObject *o) {
    py_tensor *self = (py_tensor *) o;
    Py_CLEAR(self->dict);
    tr__py_hooks_clear(self);
    return 0;
}

static void tensor_dealloc(PyObject *o) {
    py_tensor *self = (py_tensor *) o;
    PyTypeObject *type = Py_TYPE(o);
    PyObject_GC_UnTrack(o);
    if (self->weaks)
        PyObject_ClearWeakRefs(o);
    tr_tensor *t = self->t;
    self->t = NULL;
    if (t)
        t->py = NULL;
    Py_CLEAR(self->dict);
    Py_CLEAR(self->hooks); /* the tensor's own list lives on with it */
    type->tp_free(o);
    Py_DECREF(type);
    tr_tensor_release(t);
}

PyObject *tr__py_size(int n, const int64_t *values) {
    PyTypeObject *type = (PyTypeObject *) tr__py.size_type;
    PyObject *size = type ? type->tp_alloc(type, n) : PyTuple_New(n);
    for (int i = 0; size != NULL && i < n; i++) {
        PyObject *v = PyLong_FromLongLong(values[i]);
        if (v == NULL)
            Py_CLEAR(size);
        else
            PyTuple_SET_ITEM(size, i, v);
    }
    return size;
}

static PyObject *tuple_of(int n, const int64_t *values) {
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple != NULL && i < n; i++) {
        PyObject *v = PyLong_FromLongLong(values[i]);
        if (v == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, v);
    }
    return tuple;
}

/* ------------------------------------------------------------------------------------------------ arithmetic slots */

/* A binary op of operands in Python's order; NotImplemented when one is neither tensor nor number. `attrs` may be NULL. */
static PyObject *binary(tr_op op, PyObject *a, PyObject *b, bool alpha, const int64_t *attrs, bool in_place) {
    tr_input in[3];
    int r = tr__py_operand(a, &in[0]);
    if (r > 0)
        r = tr__py_operand(b, &in[1]);
    if (r < 0)
        return NULL;
    if (r == 0)
        Py_RETURN_NOTIMPLEMENTED;
    if (alpha)
        in[2] = tr_in_int(1);
    return tr__py_call(op, in, 2 + alpha, attrs, in_place);
}

static const int64_t rounding_none[1] = {0}, rounding_floor[1] = {2};

#define BINARY(name, op, alpha, attrs)                             \
    static PyObject *nb_##name(PyObject *a, PyObject *b) {         \
        return binary(op, a, b, alpha, attrs, false);              \
    }                                                              \
    static PyObject *nb_inplace_##name(PyObject *a, PyObject *b) { \
        return binary(op, a, b, alpha, attrs, true);               \
    }
BINARY(add, TR_OP_add, true, NULL)
BINARY(sub, TR_OP_sub, true, NULL)
BINARY(mul, TR_OP_mul, false, NULL)
BINARY(div, TR_OP_div, false, rounding_none)
BINARY(floordiv, TR_OP_div, false, rounding_floor)
BINARY(remainder, TR_OP_remainder, false, NULL)
BINARY(and, TR_OP_bitwise_and, false, NULL)
BINARY(or, TR_OP_bitwise_or, false, NULL)
BINARY(xor, TR_OP_bitwise_xor, false, NULL)
#undef BINARY

static PyObject *nb_pow(PyObject *a, PyObject *b, PyObject *modulo) {
    if (modulo != Py_None)
        Py_RETURN_NOTIMPLEMENTED;
    return binary(TR_OP_pow, a, b, false, NULL, false);
}
static PyObject *nb_inplace_pow(PyObject *a, PyObject *b, PyObject *modulo) {
    return binary(TR_OP_pow, a, b, false, NULL, true);
}

static PyObject *unary(tr_op op, PyObject *a) {
    tr_input in = tr_in(tr__py_t(a));
    return tr__py_call(op, &in, 1, NULL, false);
}
static PyObject *nb_neg(PyObject *a) {
    return unary(TR_OP_neg, a);
}
static PyObject *nb_abs(PyObject *a) {
    return unary(TR_OP_abs, a);
}
static PyObject *nb_pos(PyObject *a) {
    return Py_NewRef(a);
}
static PyObject *nb_invert(PyObject *a) {
    return unary(TR_OP_bitwise_not, a);
}

static PyObject *matmul(PyObject *a, PyObject *b) {
    if (!tr__py_is_tensor(a) || !tr__py_is_tensor(b))
        Py_RETURN_NOTIMPLEMENTED;
    tr_tensor *out;
    tr_status status = tr_matmul(tr__py_t(a), tr__py_t(b), &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}

static PyObject *richcompare(PyObject *a, PyObject *b, int how) {
    static const tr_op ops[] = {
        [Py_LT] = TR_OP_lt, [Py_LE] = TR_OP_le, [Py_EQ] = TR_OP_eq, [Py_NE] = TR_OP_ne, [Py_GT] = TR_OP_gt, [Py_GE] = TR_OP_ge};
    return binary(ops[how], a, b, false, NULL, false);
}

static Py_hash_t hash(PyObject *o) {
    return _Py_HashPointer(o);
}

/* ------------------------------------------------------------------------------------------------ values */

static int read_item(PyObject *o, tr_number *v, bool *is_float) {
    tr_tensor *t = tr__py_t(o);
    if (t->meta->numel != 1) {
        PyErr_Format(PyExc_RuntimeError, "a Tensor with %lld elements cannot be converted to Scalar",
                     (long long) t->meta->numel);
        return -1;
    }
    *is_float = tr_dtype_is_float(t->meta->dtype);
    return tr__py_check(tr_tensor_item(t, v));
}

static PyObject *item(PyObject *o, PyObject *unused) {
    tr_number v;
    bool is_float;
    if (read_item(o, &v, &is_float) < 0)
        return NULL;
    if (is_float)
        return PyFloat_FromDouble(v.d);
    return tr__py_t(o)->meta->dtype == TR_BOOL ? PyBool_FromLong(v.i != 0) : PyLong_FromLongLong(v.i);
}

static int nb_bool(PyObject *o) {
    int64_t n = tr__py_t(o)->meta->numel;
    if (n != 1) {
        PyErr_SetString(PyExc_RuntimeError, n ? "Boolean value of Tensor with more than one value is ambiguous"
                                              : "Boolean value of Tensor with no values is ambiguous");
        return -1;
    }
    tr_number v;
    bool is_float;
    if (read_item(o, &v, &is_float) < 0)
        return -1;
    return is_float ? v.d != 0 : v.i != 0;
}

static PyObject *nb_int(PyObject *o) {
    PyObject *v = item(o, NULL);
    PyObject *i = v ? PyNumber_Long(v) : NULL;
    Py_XDECREF(v);
    return i;
}

static PyObject *nb_float(PyObject *o) {
    PyObject *v = item(o, NULL);
    PyObject *f = v ? PyNumber_Float(v) : NULL;
    Py_XDECREF(v);
    return f;
}

static PyObject *nb_index(PyObject *o) {
    tr_tensor *t = tr__py_t(o);
    if (tr_dtype_is_float(t->meta->dtype) || t->meta->numel != 1) {
        PyErr_SetString(PyExc_TypeError, "only integer tensors of a single element can be converted to an index");
        return NULL;
    }
    return nb_int(o);
}

/* ------------------------------------------------------------------------------------------------ sequence */

static Py_ssize_t length(PyObject *o) {
    const tr_meta *m = tr__py_t(o)->meta;
    if (m->ndim == 0) {
        PyErr_SetString(PyExc_TypeError, "len() of a 0-d tensor");
        return -1;
    }
    return (Py_ssize_t) m->shape[0];
}

static PyObject *select_at(PyObject *o, int64_t dim, int64_t index) {
    tr_input in = tr_in(tr__py_t(o));
    int64_t attrs[2] = {dim, index};
    return tr__py_call(TR_OP_select, &in, 1, attrs, false);
}

static PyObject *unbind_to(PyObject *o, int64_t dim, bool tuple) {
    Py_ssize_t n = (Py_ssize_t) tr__py_t(o)->meta->shape[dim];
    PyObject *all = tuple ? PyTuple_New(n) : PyList_New(n);
    for (Py_ssize_t i = 0; all != NULL && i < n; i++) {
        PyObject *row = select_at(o, dim, i);
        if (row == NULL)
            Py_CLEAR(all);
        else if (tuple)
            PyTuple_SET_ITEM(all, i, row);
        else
            PyList_SET_ITEM(all, i, row);
    }
    return all;
}

static PyObject *iterate(PyObject *o) {
    if (tr__py_t(o)->meta->ndim == 0) {
        PyErr_SetString(PyExc_TypeError, "iteration over a 0-d tensor");
        return NULL;
    }
    PyObject *rows = unbind_to(o, 0, false);
    PyObject *it = rows ? PyObject_GetIter(rows) : NULL;
    Py_XDECREF(rows);
    return it;
}

static PyObject *unbind(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *kw[] = {"dim", NULL};
    long long dim = 0;
    int64_t d;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|L:unbind", kw, &dim))
        return NULL;
    if (tr__py_t(o)->meta->ndim == 0) {
        PyErr_SetString(PyExc_RuntimeError, "Dimension specified as 0 but tensor has no dimensions");
        return NULL;
    }
    if (tr__py_check(tr_wrap_dim(dim, tr__py_t(o)->meta->ndim, &d)) < 0)
        return NULL;
    return unbind_to(o, d, true);
}

/* ------------------------------------------------------------------------------------------------ properties */

static PyObject *get_shape(PyObject *o, void *c) {
    const tr_meta *m = tr__py_t(o)->meta;
    return tr__py_size(m->ndim, m->shape);
}
static PyObject *get_dtype(PyObject *o, void *c) {
    return Py_NewRef(tr__py.dtypes[tr__py_t(o)->meta->dtype]);
}
static PyObject *get_device(PyObject *o, void *c) {
    return Py_NewRef(tr__py.cpu ? tr__py.cpu : Py_None);
}
static PyObject *get_ndim(PyObject *o, void *c) {
    return PyLong_FromLong(tr__py_t(o)->meta->ndim);
}
static PyObject *get_itemsize(PyObject *o, void *c) {
    return PyLong_FromSize_t(tr_dtype_size(tr__py_t(o)->meta->dtype));
}
static PyObject *get_false(PyObject *o, void *c) {
    Py_RETURN_FALSE;
}
static PyObject *get_version(PyObject *o, void *c) {
    return PyLong_FromUnsignedLong(tr_tensor_version(tr__py_t(o)));
}
static PyObject *get_requires_grad(PyObject *o, void *c) {
    return PyBool_FromLong(tr__py_t(o)->requires_grad || tr__py_t(o)->grad_fn != NULL);
}
static PyObject *get_is_leaf(PyObject *o, void *c) {
    return PyBool_FromLong(tr_tensor_is_leaf(tr__py_t(o)));
}
static PyObject *get_retains_grad(PyObject *o, void *c) {
    return PyBool_FromLong(tr__py_t(o)->retains_grad);
}
static PyObject *get_grad(PyObject *o, void *c) {
    return tr__py_wrap_borrowed(tr__py_t(o)->grad);
}
static PyObject *get_grad_fn(PyObject *o, void *c) {
    return tr__py_wrap_node(tr__py_t(o)->grad_fn);
}
static PyObject *get_output_nr(PyObject *o, void *c) {
    return PyLong_FromLong(tr__py_t(o)->output_nr);
}
static PyObject *get_base(PyObject *o, void *c) {
    return tr__py_wrap_borrowed(tr__py_t(o)->base);
}

static PyObject *get_data(PyObject *o, void *c) {
    tr_tensor *t = tr__py_t(o), *out;
    tr_status status = tr_tensor_alias(t, t->meta, t->offset, &out);
    if (status)
        return tr__py_raise(status);
    out->own_version = true;
    return tr__py_wrap(out);
}

static int deny_delete(PyObject *value, const char *name) {
    if (value != NULL)
        return 0;
    PyErr_Format(PyExc_RuntimeError, "Cannot delete %s", name);
    return -1;
}

static int set_data(PyObject *o, PyObject *value, void *c) {
    if (deny_delete(value, "data tensor") < 0)
        return -1;
    if (!tr__py_is_tensor(value)) {
        PyErr_Format(PyExc_TypeError, "Variable data has to be a tensor, but got %s", Py_TYPE(value)->tp_name);
        return -1;
    }
    return tr__py_check(tr_tensor_set_data(tr__py_t(o), tr__py_t(value)));
}

static int set_requires_grad(PyObject *o, PyObject *value, void *c) {
    if (deny_delete(value, "requires_grad") < 0)
        return -1;
    if (!PyBool_Check(value)) {
        PyErr_SetString(PyExc_RuntimeError, "requires_grad must be a bool");
        return -1;
    }
    return tr__py_check(tr_tensor_set_requires_grad(tr__py_t(o), value == Py_True));
}

static int set_grad(PyObject *o, PyObject *value, void *c) {
    if (value == NULL || value == Py_None)
        return tr__py_check(tr_tensor_set_grad(tr__py_t(o), NULL));
    if (!tr__py_is_tensor(value)) {
        PyErr_Format(PyExc_TypeError, "assigned grad expected to be a Tensor or None but got grad of type %s",
                     Py_TYPE(value)->tp_name);
        return -1;
    }
    if (value == o) {
        PyErr_SetString(PyExc_RuntimeError, "can't assign Variable as its own grad");
        return -1;
    }
    return tr__py_check(tr_tensor_set_grad(tr__py_t(o), tr__py_t(value)));
}

static PyObject *reversed(PyObject *o, bool last_two) {
    tr_tensor *t = tr__py_t(o), *out;
    int n = t->meta->ndim;
    if (last_two && n < 2) {
        PyErr_Format(PyExc_RuntimeError, "tensor.mT is only supported on matrices or batches of matrices. Got %d-D tensor.", n);
        return NULL;
    }
    int64_t dims[TR_MAX_DIMS];
    for (int d = 0; d < n; d++)
        dims[d] = last_two ? d : n - 1 - d;
    if (last_two) {
        dims[n - 1] = n - 2;
        dims[n - 2] = n - 1;
    }
    tr_status status = tr_permute(t, dims, &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}
static PyObject *get_T(PyObject *o, void *c) {
    return reversed(o, false);
}
static PyObject *get_mT(PyObject *o, void *c) {
    return reversed(o, true);
}

static PyGetSetDef getset[] = {
    {"shape", get_shape},
    {"dtype", get_dtype},
    {"device", get_device},
    {"ndim", get_ndim},
    {"itemsize", get_itemsize},
    {"_version", get_version},
    {"requires_grad", get_requires_grad, set_requires_grad},
    {"is_leaf", get_is_leaf},
    {"retains_grad", get_retains_grad},
    {"grad", get_grad, set_grad},
    {"grad_fn", get_grad_fn},
    {"output_nr", get_output_nr},
    {"_base", get_base},
    {"data", get_data, set_data},
    {"T", get_T},
    {"mT", get_mT},
    {"is_cuda", get_false},
    {"is_sparse", get_false},
    {"is_meta", get_false},
    {"is_quantized", get_false},
    {"is_nested", get_false},
    {"is_mkldnn", get_false},
    {"is_mps", get_false},
    {"is_xpu", get_false},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict},
    {NULL},
};

/* ------------------------------------------------------------------------------------------------ methods */

static PyObject *dim(PyObject *o, PyObject *unused) {
    return get_ndim(o, NULL);
}
static PyObject *numel(PyObject *o, PyObject *unused) {
    return PyLong_FromLongLong(tr__py_t(o)->meta->numel);
}
static PyObject *element_size(PyObject *o, PyObject *unused) {
    return get_itemsize(o, NULL);
}
static PyObject *storage_offset(PyObject *o, PyObject *unused) {
    return PyLong_FromLongLong(tr__py_t(o)->offset);
}
static PyObject *is_floating_point(PyObject *o, PyObject *unused) {
    return PyBool_FromLong(tr_dtype_is_float(tr__py_t(o)->meta->dtype));
}

static PyObject *size_or_stride(PyObject *o, PyObject *args, PyObject *kwargs, bool size) {
    static char *kw[] = {"dim", NULL};
    PyObject *which = Py_None;
    const tr_meta *m = tr__py_t(o)->meta;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, size ? "|O:size" : "|O:stride", kw, &which))
        return NULL;
    if (which == Py_None)
        return size ? tr__py_size(m->ndim, m->shape) : tuple_of(m->ndim, m->strides);
    int64_t d;
    if (tr__py_int(which, &d) < 0)
        return NULL;
    if (m->ndim == 0) {
        PyErr_SetString(PyExc_IndexError, "Dimension specified as 0 but tensor has no dimensions");
        return NULL;
    }
    if (tr__py_check(tr_wrap_dim(d, m->ndim, &d)) < 0)
        return NULL;
    return PyLong_FromLongLong(size ? m->shape[d] : m->strides[d]);
}
static PyObject *size(PyObject *o, PyObject *args, PyObject *kwargs) {
    return size_or_stride(o, args, kwargs, true);
}
static PyObject *stride(PyObject *o, PyObject *args, PyObject *kwargs) {
    return size_or_stride(o, args, kwargs, false);
}

static PyObject *is_contiguous(PyObject *o, PyObject *args, PyObject *kwargs) {
    return PyBool_FromLong(tr__py_t(o)->meta->contiguous);
}

/* A torch.memory_format, or nothing. */
static int check_memory_format(const char *what, PyObject *o) {
    if (o == NULL || o == Py_None || strstr(Py_TYPE(o)->tp_name, "memory_format") != NULL)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s(): argument 'memory_format' must be torch.memory_format, not %s", what,
                 Py_TYPE(o)->tp_name);
    return -1;
}

static PyObject *contiguous(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *kw[] = {"memory_format", NULL};
    PyObject *format = NULL;
    tr_tensor *out;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:contiguous", kw, &format) ||
        check_memory_format("contiguous", format) < 0)
        return NULL;
    tr_status status = tr_contiguous(tr__py_t(o), &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}

static int sizes_of(const char *what, PyObject *const *args, Py_ssize_t n, PyObject *kwnames, int64_t *out, int *count) {
    Py_ssize_t n_kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (n + n_kw == 0) {
        PyErr_Format(PyExc_TypeError, "%s() missing 1 required positional arguments: \"size\"", what);
        return -1;
    }
    if (n == 0) /* view(size=...), reshape(shape=...), permute(dims=...) */
        n = 1;
    return tr__py_sizes(what, args, n, out, count);
}

static PyObject *shaped(PyObject *o, const char *what, tr_status (*fn)(tr_tensor *, int, const int64_t *, tr_tensor **),
                        PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    int64_t shape[TR_MAX_DIMS];
    int count;
    tr_tensor *out;
    if (sizes_of(what, args, n, kwnames, shape, &count) < 0)
        return NULL;
    tr_status status = fn(tr__py_t(o), count, shape, &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}
static PyObject *view(PyObject *o, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    if (n == 1 && Py_TYPE(args[0]) == tr__py.dtype_type) {
        if (((py_dtype *) args[0])->dtype == tr__py_t(o)->meta->dtype)
            return Py_NewRef(o);
        PyErr_SetString(PyExc_NotImplementedError, "view(dtype): not in Terra's subset yet");
        return NULL;
    }
    return shaped(o, "view", tr_view, args, n, kwnames);
}
static PyObject *reshape(PyObject *o, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    return shaped(o, "reshape", tr_reshape, args, n, kwnames);
}
static PyObject *expand(PyObject *o, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    return shaped(o, "expand", tr_expand, args, n, kwnames);
}

static PyObject *permute(PyObject *o, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    int64_t dims[TR_MAX_DIMS];
    int count, ndim = tr__py_t(o)->meta->ndim;
    if (sizes_of("permute", args, n, kwnames, dims, &count) < 0)
        return NULL;
    if (count != ndim) {
        PyErr_Format(PyExc_RuntimeError,
                     "permute(sparse_coo): number of dimensions in the tensor input does not match the "
                     "length of the desired ordering of dimensions i.e. input.dim() = %d is not equal to len(dims) = %d",
                     ndim, count);
        return NULL;
    }
    unsigned seen = 0;
    for (int d = 0; d < count; d++) {
        if (tr__py_check(tr_wrap_dim(dims[d], ndim, &dims[d])) < 0)
            return NULL;
        if (seen >> dims[d] & 1) {
            PyErr_SetString(PyExc_RuntimeError, "permute(): duplicate dims are not allowed.");
            return NULL;
        }
        seen |= 1u << dims[d];
    }
    tr_tensor *out;
    tr_status status = tr_permute(tr__py_t(o), dims, &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}

static PyObject *t_method(PyObject *o, PyObject *unused) {
    int n = tr__py_t(o)->meta->ndim;
    if (n > 2) {
        PyErr_Format(PyExc_RuntimeError, "t() expects a tensor with <= 2 dimensions, but self is %dD", n);
        return NULL;
    }
    return reversed(o, false);
}

static PyObject *to_dtype(PyObject *o, tr_dtype dtype) {
    tr_tensor *out;
    tr_status status = tr_to_dtype(tr__py_t(o), dtype, &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}
#define TO(name, dtype)                                                         \
    static PyObject *to_##name(PyObject *o, PyObject *args, PyObject *kwargs) { \
        return to_dtype(o, dtype);                                              \
    }
TO(float, TR_F32)
TO(double, TR_F64)
TO(long, TR_I64)
TO(int, TR_I32)
TO(byte, TR_U8)
TO(bool, TR_BOOL)
TO(bfloat16, TR_BF16)
#undef TO

static int check_device(PyObject *o) {
    if (o == Py_None || o == tr__py.cpu)
        return 0;
    if (!PyUnicode_Check(o) && !PyLong_Check(o) && Py_TYPE(o) != Py_TYPE(tr__py.cpu)) {
        PyErr_Format(PyExc_TypeError,
                     "to() received an invalid combination of arguments - got (%s), but expected a dtype, a device or "
                     "a Tensor",
                     Py_TYPE(o)->tp_name);
        return -1;
    }
    PyObject *r = PyObject_CallOneArg(tr__py.device_check, o);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

/* One argument of to(): a dtype, a tensor, or a device. */
static int to_target(PyObject *arg, tr_dtype *dtype) {
    if (Py_TYPE(arg) == tr__py.dtype_type || PyType_Check(arg))
        return tr__py_dtype_arg("to", arg, dtype);
    if (tr__py_is_tensor(arg)) {
        *dtype = tr__py_t(arg)->meta->dtype;
        return 0;
    }
    return check_device(arg);
}

static PyObject *to(PyObject *o, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    tr_dtype had = tr__py_t(o)->meta->dtype, dtype = had;
    bool copy = false;
    for (Py_ssize_t i = 0; i < n; i++)
        if (!PyBool_Check(args[i]) && args[i] != Py_None && to_target(args[i], &dtype) < 0)
            return NULL;
    Py_ssize_t n_bools = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        if (PyBool_Check(args[i]) && n_bools++ == 1)
            copy = args[i] == Py_True;
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(kwnames, i));
        PyObject *value = args[n + i];
        if (strcmp(name, "copy") == 0)
            copy = PyObject_IsTrue(value) > 0;
        else if (strcmp(name, "non_blocking") == 0 || strcmp(name, "memory_format") == 0)
            continue;
        else if (strcmp(name, "device") != 0 && strcmp(name, "dtype") != 0 && strcmp(name, "other") != 0) {
            PyErr_Format(PyExc_TypeError, "to() got an unexpected keyword argument '%s'", name);
            return NULL;
        } else if (value != Py_None && to_target(value, &dtype) < 0)
            return NULL;
    }
    if (!copy || dtype != had)
        return to_dtype(o, dtype);
    return unary(TR_OP_clone, o);
}

static PyObject *cpu(PyObject *o, PyObject *args, PyObject *kwargs) {
    return Py_NewRef(o);
}

static PyObject *requires_grad_(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *kw[] = {"requires_grad", NULL};
    int on = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|p:requires_grad_", kw, &on))
        return NULL;
    return tr__py_check(tr_tensor_set_requires_grad(tr__py_t(o), on)) < 0 ? NULL : Py_NewRef(o);
}

static PyObject *retain_grad(PyObject *o, PyObject *unused) {
    if (tr__py_check(tr_tensor_retain_grad(tr__py_t(o))) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *bump_version(PyObject *o, PyObject *unused) {
    tr_tensor_bump_version(tr__py_t(o));
    Py_RETURN_NONE;
}

static PyObject *same_storage(PyObject *o, PyObject *other) {
    if (!tr__py_is_tensor(other))
        return PyErr_Format(PyExc_TypeError, "a Tensor is needed");
    return PyBool_FromLong(tr_tensor_same_storage(tr__py_t(o), tr__py_t(other)));
}
static PyObject *storage_key(PyObject *o, PyObject *unused) {
    return PyLong_FromVoidPtr(tr__py_t(o)->storage);
}
static PyObject *storage_bytes(PyObject *o, PyObject *unused) {
    return PyLong_FromSize_t(tr_tensor_storage_bytes(tr__py_t(o)));
}

/* _alias(size, stride, offset): another tensor over the storage, outside autograd. */
static PyObject *alias(PyObject *o, PyObject *args) {
    PyObject *size, *strides;
    long long offset;
    int64_t shape[TR_MAX_DIMS], stride[TR_MAX_DIMS], last;
    int n, m;
    tr_tensor *t = tr__py_t(o), *out;
    if (!PyArg_ParseTuple(args, "OOL:_alias", &size, &strides, &offset) || tr__py_sizes("_alias", &size, 1, shape, &n) < 0 ||
        tr__py_sizes("_alias", &strides, 1, stride, &m) < 0)
        return NULL;
    last = offset;
    int64_t held = (int64_t) (tr_tensor_storage_bytes(t) / tr_dtype_size(t->meta->dtype));
    bool empty = false, bad = n != m || offset < 0;
    for (int d = 0; d < n && !bad; d++) {
        int64_t reach = 0;
        empty |= shape[d] == 0;
        bad = shape[d] < 0 || stride[d] < 0 || (shape[d] > 1 && __builtin_mul_overflow(shape[d] - 1, stride[d], &reach)) ||
              __builtin_add_overflow(last, reach, &last);
    }
    if (bad || (!empty && last >= held) || offset > held) {
        PyErr_SetString(PyExc_RuntimeError, "sizes, strides and offset reach outside of the storage");
        return NULL;
    }
    const tr_meta *meta = tr_meta_get(t->meta->dtype, n, shape, stride);
    if (meta == NULL)
        return tr__py_raise(TR_E_NOMEM);
    tr_status status = tr_tensor_alias(t, meta, offset, &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}

/* Tensor._make_subclass(cls, data, requires_grad=False): a tensor of class cls over data's storage. */
static PyObject *make_subclass(PyObject *unused, PyObject *args, PyObject *kwargs) {
    static char *kw[] = {"cls", "data", "requires_grad", NULL};
    PyObject *cls, *data;
    int requires_grad = 0;
    tr_tensor *out;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!|p:_make_subclass", kw, &PyType_Type, &cls, tr__py.tensor_type, &data,
                                     &requires_grad))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *) cls, tr__py.tensor_type))
        return PyErr_Format(PyExc_TypeError, "cls must be a subclass of Tensor");
    tr_tensor *t = tr__py_t(data);
    tr_status status = tr_tensor_alias(t, t->meta, t->offset, &out);
    if (status)
        return tr__py_raise(status);
    if (requires_grad && (status = tr_tensor_set_requires_grad(out, true)) != TR_OK) {
        tr_tensor_release(out);
        return tr__py_raise(status);
    }
    out->is_parameter = true;
    return new_object((PyTypeObject *) cls, out);
}

static bool is_float_array(PyObject *o) {
    Py_buffer view;
    if (strcmp(Py_TYPE(o)->tp_name, "numpy.ndarray") != 0 || PyObject_GetBuffer(o, &view, PyBUF_FULL_RO) < 0) {
        PyErr_Clear();
        return false;
    }
    bool is = tr__py_format_dtype(view.format, view.itemsize) == TR_F32;
    PyBuffer_Release(&view);
    return is;
}

/* The legacy constructor: Tensor(), Tensor(2, 3), Tensor([1., 2.]), Tensor(ndarray). Always float32 of that class. */
static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    PyObject *first = n ? PyTuple_GET_ITEM(args, 0) : NULL;
    tr_tensor *t = NULL;
    if (n == 1 && !PyLong_Check(first) && !PyObject_TypeCheck(first, (PyTypeObject *) tr__py.size_type)) {
        if (tr__py_is_tensor(first)) {
            tr_tensor *from = tr__py_t(first);
            tr_status status = tr_tensor_alias(from, from->meta, from->offset, &t);
            if (status)
                return tr__py_raise(status);
        } else if (is_float_array(first)) { /* shares its memory */
            PyObject *shared = tr__py_from_numpy(NULL, first);
            if (shared == NULL)
                return NULL;
            tr_tensor_retain(t = tr__py_t(shared));
            Py_DECREF(shared);
        } else
            t = tr__py_from_data(first, TR_F32);
    } else {
        int64_t shape[TR_MAX_DIMS] = {0};
        int count = 1;
        if (n && tr__py_sizes("new", &PyTuple_GET_ITEM(args, 0), n, shape, &count) < 0)
            return NULL;
        for (int d = 0; d < count; d++)
            if (shape[d] < 0)
                return PyErr_Format(PyExc_RuntimeError, "Trying to create tensor with negative dimension %lld",
                                    (long long) shape[d]);
        const tr_meta *meta = tr_meta_get(TR_F32, count, shape, NULL);
        tr_status status = meta ? tr_tensor_empty(meta, &t) : TR_E_NOMEM;
        if (status)
            return tr__py_raise(status);
    }
    return t ? new_object(type, t) : NULL;
}

static PyObject *repr(PyObject *o) {
    return tr__py.repr ? PyObject_CallOneArg(tr__py.repr, o) : PyUnicode_FromString("<tensor>");
}

#define KW(fn)   (PyCFunction)(void (*)(void)) fn, METH_VARARGS | METH_KEYWORDS
#define FAST(fn) (PyCFunction)(void (*)(void)) fn, METH_FASTCALL | METH_KEYWORDS
static PyMethodDef own_methods[] = {
    {"item", item, METH_NOARGS, "The value of a tensor of one element, as a Python number."},
    {"tolist", tr__py_tolist, METH_NOARGS, "Nested lists of Python numbers."},
    {"numpy", FAST(tr__py_numpy), "An array that shares the tensor's memory."},
    {"__dlpack__", FAST(tr__py_dlpack), "A capsule that shares the tensor's memory."},
    {"dim", dim, METH_NOARGS, NULL},
    {"ndimension", dim, METH_NOARGS, NULL},
    {"numel", numel, METH_NOARGS, NULL},
    {"nelement", numel, METH_NOARGS, NULL},
    {"element_size", element_size, METH_NOARGS, NULL},
    {"storage_offset", storage_offset, METH_NOARGS, NULL},
    {"is_floating_point", is_floating_point, METH_NOARGS, NULL},
    {"size", KW(size), NULL},
    {"stride", KW(stride), NULL},
    {"is_contiguous", KW(is_contiguous), NULL},
    {"contiguous", KW(contiguous), NULL},
    {"view", FAST(view), NULL},
    {"reshape", FAST(reshape), NULL},
    {"expand", FAST(expand), NULL},
    {"permute", FAST(permute), NULL},
    {"t", t_method, METH_NOARGS, NULL},
    {"unbind", KW(unbind), NULL},
    {"matmul", matmul, METH_O, NULL},
    {"to", FAST(to), "to(dtype), to(device), to(other): self if nothing changes."},
    {"cpu", KW(cpu), NULL},
    {"float", KW(to_float), NULL},
    {"double", KW(to_double), NULL},
    {"long", KW(to_long), NULL},
    {"int", KW(to_int), NULL},
    {"byte", KW(to_byte), NULL},
    {"bool", KW(to_bool), NULL},
    {"bfloat16", KW(to_bfloat16), NULL},
    {"requires_grad_", KW(requires_grad_), NULL},
    {"retain_grad", retain_grad, METH_NOARGS, NULL},
    {"_register_hook", tr__py_register_hook, METH_O, NULL},
    {"_remove_hook", tr__py_remove_hook, METH_O, NULL},
    {"_register_post_hook", tr__py_register_post_hook, METH_O, NULL},
    {"_bump_version", bump_version, METH_NOARGS, NULL},
    {"_same_storage", same_storage, METH_O, NULL},
    {"_storage_key", storage_key, METH_NOARGS, NULL},
    {"_storage_bytes", storage_bytes, METH_NOARGS, NULL},
    {"_alias", alias, METH_VARARGS, NULL},
    {"_make_subclass", (PyCFunction) (void (*)(void)) make_subclass, METH_VARARGS | METH_KEYWORDS | METH_STATIC, NULL},
    {NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(py_tensor, weaks), READONLY},
    {"__dictoffset__", T_PYSSIZET, offsetof(py_tensor, dict), READONLY},
    {NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A multi-dimensional array whose values may still be on their way."},
    {Py_tp_new, tensor_new},
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_traverse, tensor_traverse},
    {Py_tp_clear, tensor_clear},
    {Py_tp_repr, repr},
    {Py_tp_hash, hash},
    {Py_tp_richcompare, richcompare},
    {Py_tp_iter, iterate},
    {Py_tp_getset, getset},
    {Py_tp_members, members},
    {Py_tp_methods, own_methods},
    {Py_mp_length, length},
    {Py_mp_subscript, tr__py_getitem},
    {Py_mp_ass_subscript, tr__py_setitem},
    {Py_sq_length, length},
    {Py_nb_add, nb_add},
    {Py_nb_subtract, nb_sub},
    {Py_nb_multiply, nb_mul},
    {Py_nb_true_divide, nb_div},
    {Py_nb_floor_divide, nb_floordiv},
    {Py_nb_remainder, nb_remainder},
    {Py_nb_power, nb_pow},
    {Py_nb_and, nb_and},
    {Py_nb_or, nb_or},
    {Py_nb_xor, nb_xor},
    {Py_nb_matrix_multiply, matmul},
    {Py_nb_inplace_add, nb_inplace_add},
    {Py_nb_inplace_subtract, nb_inplace_sub},
    {Py_nb_inplace_multiply, nb_inplace_mul},
    {Py_nb_inplace_true_divide, nb_inplace_div},
    {Py_nb_inplace_floor_divide, nb_inplace_floordiv},
    {Py_nb_inplace_remainder, nb_inplace_remainder},
    {Py_nb_inplace_power, nb_inplace_pow},
    {Py_nb_inplace_and, nb_inplace_and},
    {Py_nb_inplace_or, nb_inplace_or},
    {Py_nb_inplace_xor, nb_inplace_xor},
    {Py_nb_negative, nb_neg},
    {Py_nb_positive, nb_pos},
    {Py_nb_absolute, nb_abs},
    {Py_nb_invert, nb_invert},
    {Py_nb_bool, nb_bool},
    {Py_nb_int, nb_int},
    {Py_nb_float, nb_float},
    {Py_nb_index, nb_index},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "terra.Tensor",
    .basicsize = sizeof(py_tensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

/* Adds a NULL-terminated table of methods to a made type; the table must be static. */
static int add_methods(PyTypeObject *type, PyMethodDef *table) {
    for (PyMethodDef *m = table; m->ml_name; m++) {
        PyObject *d = PyDescr_NewMethod(type, m);
        if (d == NULL || PyObject_SetAttrString((PyObject *) type, m->ml_name, d) < 0) {
            Py_XDECREF(d);
            return -1;
        }
        Py_DECREF(d);
    }
    return 0;
}

int tr__py_tensor_init(PyObject *module) {
    tr__py.tensor_type = (PyTypeObject *) PyType_FromSpec(&spec);
    if (tr__py.tensor_type == NULL || add_methods(tr__py.tensor_type, tr__py_op_methods) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Tensor", (PyObject *) tr__py.tensor_type);
}
