/* module.c - the module terra._C: state, dtypes, new tensors, generators, marks and what can be seen. */
#include "python/py.h"

#include "terra/alloc.h"

#include <string.h>

py_state tr__py = {.default_dtype = TR_F32};

/* ------------------------------------------------------------------------------------------------ dtypes */

static PyObject *dtype_repr(PyObject *o) {
    return PyUnicode_FromFormat("torch.%s", tr_dtype_name(((py_dtype *) o)->dtype));
}
static PyObject *dtype_reduce(PyObject *o, PyObject *unused) {
    return PyUnicode_FromString(tr_dtype_name(((py_dtype *) o)->dtype));
}
static PyObject *dtype_is_float(PyObject *o, void *c) {
    return PyBool_FromLong(tr_dtype_is_float(((py_dtype *) o)->dtype));
}
static PyObject *dtype_false(PyObject *o, void *c) {
    Py_RETURN_FALSE;
}
static PyObject *dtype_signed(PyObject *o, void *c) {
    tr_dtype d = ((py_dtype *) o)->dtype;
    return PyBool_FromLong(d != TR_U8 && d != TR_BOOL);
}
static PyObject *dtype_itemsize(PyObject *o, void *c) {
    return PyLong_FromSize_t(tr_dtype_size(((py_dtype *) o)->dtype));
}
static PyObject *dtype_legacy(PyObject *o, void *c) {
    return PyUnicode_FromString(tr_dtype_legacy(((py_dtype *) o)->dtype));
}

static PyMethodDef dtype_methods[] = {{"__reduce__", dtype_reduce, METH_NOARGS, NULL}, {NULL}};
static PyGetSetDef dtype_getset[] = {
    {"is_floating_point", dtype_is_float}, {"is_complex", dtype_false}, {"is_signed", dtype_signed},
    {"itemsize", dtype_itemsize},          {"_legacy", dtype_legacy},   {NULL}};
static PyType_Slot dtype_slots[] = {
    {Py_tp_repr, dtype_repr}, {Py_tp_methods, dtype_methods}, {Py_tp_getset, dtype_getset}, {0, NULL}};
static PyType_Spec dtype_spec = {
    .name = "terra.dtype",
    .basicsize = sizeof(py_dtype),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = dtype_slots,
};

static int dtypes_init(PyObject *module) {
    tr__py.dtype_type = (PyTypeObject *) PyType_FromSpec(&dtype_spec);
    if (tr__py.dtype_type == NULL || PyModule_AddObjectRef(module, "dtype", (PyObject *) tr__py.dtype_type) < 0)
        return -1;
    for (int d = 0; d < TR_DTYPE_COUNT; d++) {
        py_dtype *o = (py_dtype *) tr__py.dtype_type->tp_alloc(tr__py.dtype_type, 0);
        if (o == NULL)
            return -1;
        o->dtype = (tr_dtype) d;
        tr__py.dtypes[d] = (PyObject *) o;
        if (PyModule_AddObjectRef(module, tr_dtype_name((tr_dtype) d), (PyObject *) o) < 0)
            return -1;
    }
    return 0;
}

static PyObject *get_default_dtype(PyObject *module, PyObject *unused) {
    return Py_NewRef(tr__py.dtypes[tr__py.default_dtype]);
}
static PyObject *set_default_dtype(PyObject *module, PyObject *o) {
    tr_dtype dtype;
    if (tr__py_dtype_arg("set_default_dtype", o, &dtype) < 0)
        return NULL;
    if (!tr_dtype_is_float(dtype))
        return PyErr_Format(PyExc_TypeError, "only floating-point types are supported as the default type");
    tr__py.default_dtype = dtype;
    Py_RETURN_NONE;
}

static PyObject *result_type(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    tr_input in[2];
    if (n != 2)
        return PyErr_Format(PyExc_TypeError, "result_type() takes 2 arguments");
    for (int i = 0; i < 2; i++)
        if (tr__py_operand(args[i], &in[i]) <= 0)
            return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "result_type(): tensors or numbers are needed");
    return Py_NewRef(tr__py.dtypes[tr_result_type(in, 2)]);
}

/* ------------------------------------------------------------------------------------------------ new tensors */

/* _new(op name's op, size, dtype or None, numbers...): an op of class NEW. */
static PyObject *new_tensor(tr_op op, PyObject *const *args, Py_ssize_t n, int n_numbers) {
    int64_t shape[TR_MAX_DIMS];
    int ndim;
    tr_dtype dtype = tr__py.default_dtype;
    tr_input in[2];
    tr_tensor *out[TR_MAX_OUTPUTS] = {NULL};
    if (n != 2 + n_numbers)
        return PyErr_Format(PyExc_TypeError, "%d arguments are needed", 2 + n_numbers);
    if (tr__py_sizes(tr_op_info_of(op)->name + 1, args, 1, shape, &ndim) < 0 ||
        (args[1] != Py_None && tr__py_dtype_arg(tr_op_info_of(op)->name + 1, args[1], &dtype) < 0))
        return NULL;
    for (int d = 0; d < ndim; d++)
        if (shape[d] < 0)
            return PyErr_Format(PyExc_RuntimeError, "Trying to create tensor with negative dimension %lld",
                                (long long) shape[d]);
    for (int i = 0; i < n_numbers; i++) {
        int r = tr__py_number(args[2 + i], &in[i]);
        if (r <= 0)
            return r < 0 ? NULL
                         : PyErr_Format(PyExc_TypeError, "%s(): must be Number, not %s", tr_op_info_of(op)->name + 1,
                                        Py_TYPE(args[2 + i])->tp_name);
    }
    if (op == TR_OP__full && args[1] == Py_None)
        dtype = in[0].meta->dtype == TR_F64 ? tr__py.default_dtype : (tr_dtype) in[0].meta->dtype;
    const tr_meta *meta = tr_meta_get(dtype, ndim, shape, NULL);
    tr_status status = meta ? tr_apply(op, in, n_numbers, NULL, meta, false, out) : TR_E_NOMEM;
    return status ? tr__py_raise(status) : tr__py_wrap(out[0]);
}
static PyObject *new_full(PyObject *m, PyObject *const *a, Py_ssize_t n) {
    return new_tensor(TR_OP__full, a, n, 1);
}
static PyObject *new_arange(PyObject *m, PyObject *const *a, Py_ssize_t n) {
    return new_tensor(TR_OP__arange, a, n, 2);
}
static PyObject *new_linspace(PyObject *m, PyObject *const *a, Py_ssize_t n) {
    return new_tensor(TR_OP__linspace, a, n, 2);
}
static PyObject *new_eye(PyObject *m, PyObject *const *a, Py_ssize_t n) {
    return new_tensor(TR_OP__eye, a, n, 0);
}
static PyObject *new_empty(PyObject *m, PyObject *const *a, Py_ssize_t n) {
    return new_tensor(TR_OP__empty, a, n, 0);
}

static PyObject *linear(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    tr_tensor *in[3] = {NULL}, *out;
    if (n != 3)
        return PyErr_Format(PyExc_TypeError, "linear() takes 3 arguments");
    for (int i = 0; i < 3; i++) {
        if (i == 2 && args[i] == Py_None)
            break;
        if (!tr__py_is_tensor(args[i]))
            return PyErr_Format(PyExc_TypeError, "linear(): argument '%s' (position %d) must be Tensor, not %s",
                                (const char *[]){"input", "weight", "bias"}[i], i + 1, Py_TYPE(args[i])->tp_name);
        in[i] = tr__py_t(args[i]);
    }
    tr_status status = tr_linear(in[0], in[1], in[2], &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}

static PyObject *nonzero(PyObject *module, PyObject *o) {
    if (!tr__py_is_tensor(o))
        return PyErr_Format(PyExc_TypeError, "nonzero(): argument 'input' (position 1) must be Tensor, not %s",
                            Py_TYPE(o)->tp_name);
    tr_tensor *out;
    tr_status status = tr_nonzero(tr__py_t(o), &out);
    return status ? tr__py_raise(status) : tr__py_wrap(out);
}

/* ------------------------------------------------------------------------------------------------ generators */

static tr_tensor *generator_of(PyObject *o) {
    if (o == Py_None)
        return tr_default_generator();
    if (tr__py_is_tensor(o))
        return tr__py_t(o);
    PyErr_Format(PyExc_TypeError, "a generator's state is needed, not %s", Py_TYPE(o)->tp_name);
    return NULL;
}
static PyObject *default_generator(PyObject *module, PyObject *unused) {
    return tr__py_wrap_borrowed(tr_default_generator());
}
static PyObject *generator_create(PyObject *module, PyObject *seed) {
    unsigned long long s = PyLong_AsUnsignedLongLongMask(seed);
    if (PyErr_Occurred())
        return NULL;
    tr_tensor *t;
    tr_status status = tr_generator_create(s, &t);
    return status ? tr__py_raise(status) : tr__py_wrap(t);
}
static PyObject *generator_set_seed(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    tr_tensor *g = n == 2 ? generator_of(args[0]) : NULL;
    unsigned long long s = g ? PyLong_AsUnsignedLongLongMask(args[1]) : 0;
    if (g == NULL || PyErr_Occurred())
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "a generator and a seed are needed");
    if (tr__py_check(tr_generator_set_seed(g, s)) < 0)
        return NULL;
    Py_RETURN_NONE;
}
static PyObject *generator_draw64(PyObject *module, PyObject *state) {
    tr_tensor *g = generator_of(state);
    uint64_t words;
    if (g == NULL || tr__py_check(tr_generator_draw64(g, &words)) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(words);
}

/* ------------------------------------------------------------------------------------------------ iterations, to see it */

static PyObject *mark(tr_mark_kind kind) {
    if (tr__py_check(tr_mark(kind, tr__py_site())) < 0)
        return NULL;
    Py_RETURN_NONE;
}
static PyObject *mark_step(PyObject *m, PyObject *unused) {
    return mark(TR_MARK_EXPLICIT);
}
static PyObject *mark_optimizer(PyObject *m, PyObject *unused) {
    return mark(TR_MARK_OPTIMIZER);
}
static PyObject *mark_dataloader(PyObject *m, PyObject *unused) {
    return mark(TR_MARK_DATALOADER);
}
static PyObject *mark_backward(PyObject *m, PyObject *unused) {
    return mark(TR_MARK_BACKWARD);
}

static PyObject *stats(PyObject *module, PyObject *unused) {
    tr_stats s;
    tr_stats_get(&s);
    PyObject *d = PyDict_New();
    const struct {
        const char *name;
        int64_t value;
    } rows[] = {
#define ROW(field) {#field, s.field}
        ROW(iterations_traced),
        ROW(iterations_coexecuted),
        ROW(ops),
        ROW(ops_from_plans),
        ROW(instructions),
        ROW(instructions_shared),
        ROW(ops_covered),
        ROW(bytes_elided),
        ROW(side_exits),
        ROW(shape_misses),
        ROW(fetches),
        ROW(demands),
        ROW(starvations),
        ROW(plans),
        ROW(compile_ns),
        ROW(views),
        ROW(skeleton_ops),
        ROW(skeleton_ns),
        ROW(bytes_live),
        ROW(bytes_peak),
        ROW(bytes_touched),
        ROW(allocations),
        ROW(executors),
        ROW(threads),
#undef ROW
    };
    for (size_t i = 0; d && i < sizeof rows / sizeof *rows; i++) {
        PyObject *v = PyLong_FromLongLong(rows[i].value);
        if (v == NULL || PyDict_SetItemString(d, rows[i].name, v) < 0)
            Py_CLEAR(d);
        Py_XDECREF(v);
    }
    return d;
}
static PyObject *stats_reset(PyObject *module, PyObject *unused) {
    tr_stats_reset();
    Py_RETURN_NONE;
}

static PyObject *text_of(char *text) {
    if (text == NULL)
        return PyErr_NoMemory();
    PyObject *s = PyUnicode_DecodeUTF8(text, (Py_ssize_t) strlen(text), "replace");
    tr_free(text);
    return s;
}
static PyObject *explain(PyObject *module, PyObject *unused) {
    return text_of(tr_explain());
}
static PyObject *graphviz(PyObject *module, PyObject *unused) {
    return text_of(tr_graphviz());
}
static PyObject *info(PyObject *module, PyObject *unused) {
    return text_of(tr_info());
}

static PyObject *synchronize(PyObject *module, PyObject *unused) {
    if (tr__py_check(tr_synchronize()) < 0)
        return NULL;
    Py_RETURN_NONE;
}
static PyObject *set_executors(PyObject *module, PyObject *args) {
    int n, threads = 0;
    if (!PyArg_ParseTuple(args, "i|i:set_executors", &n, &threads) || tr__py_check(tr_set_executors(n, threads)) < 0)
        return NULL;
    Py_RETURN_NONE;
}
static PyObject *set_coexecution(PyObject *module, PyObject *on) {
    tr_set_coexecution(PyObject_IsTrue(on) > 0);
    Py_RETURN_NONE;
}
static PyObject *set_sync(PyObject *module, PyObject *on) {
    tr_set_sync(PyObject_IsTrue(on) > 0);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------------------------------------ life */

static bool running;

static PyObject *shut_down(PyObject *module, PyObject *unused) {
    if (!running)
        Py_RETURN_NONE;
    running = false;
    if (tr__py_check(tr_tracer_shutdown()) < 0)
        return NULL;
    Py_RETURN_NONE;
}
static PyObject *fork_prepare(PyObject *module, PyObject *unused) {
    tr_fork_prepare();
    Py_RETURN_NONE;
}
static PyObject *fork_parent(PyObject *module, PyObject *unused) {
    tr_fork_parent();
    Py_RETURN_NONE;
}
static PyObject *fork_child(PyObject *module, PyObject *unused) {
    tr_fork_child();
    Py_RETURN_NONE;
}

/* _register(size_type, cpu, device_check, repr): what the Python half gives. */
static PyObject *register_python(PyObject *module, PyObject *args) {
    PyObject *size_type, *cpu, *device_check, *repr;
    if (!PyArg_ParseTuple(args, "OOOO:_register", &size_type, &cpu, &device_check, &repr))
        return NULL;
    if (!PyType_Check(size_type) || !PyType_IsSubtype((PyTypeObject *) size_type, &PyTuple_Type))
        return PyErr_Format(PyExc_TypeError, "size_type must be a subclass of tuple");
    Py_XSETREF(tr__py.size_type, Py_NewRef(size_type));
    Py_XSETREF(tr__py.cpu, Py_NewRef(cpu));
    Py_XSETREF(tr__py.device_check, Py_NewRef(device_check));
    Py_XSETREF(tr__py.repr, Py_NewRef(repr));
    Py_RETURN_NONE;
}

static void *gil_release(void) {
    return PyEval_SaveThread();
}
static void gil_acquire(void *token) {
    PyEval_RestoreThread(token);
}
static tr_status check_signals(void) {
    return PyErr_CheckSignals() < 0 ? TR_E_PYTHON : TR_OK;
}

#define FAST(fn) (PyCFunction)(void (*)(void)) fn, METH_FASTCALL
static PyMethodDef methods[] = {
    {"get_default_dtype", get_default_dtype, METH_NOARGS, NULL},
    {"set_default_dtype", set_default_dtype, METH_O, NULL},
    {"result_type", FAST(result_type), "result_type(a, b) -> dtype: what arithmetic of a and b gives."},
    {"_new_full", FAST(new_full), "_new_full(size, dtype, value)"},
    {"_new_arange", FAST(new_arange), "_new_arange(size, dtype, start, step)"},
    {"_new_linspace", FAST(new_linspace), "_new_linspace(size, dtype, start, end)"},
    {"_new_eye", FAST(new_eye), "_new_eye(size, dtype)"},
    {"_new_empty", FAST(new_empty), "_new_empty(size, dtype)"},
    {"_linear", FAST(linear), "_linear(input, weight, bias or None)"},
    {"_nonzero_of", nonzero, METH_O, "The indices of non-zero elements, [n, ndim]. Waits."},
    {"_default_generator", default_generator, METH_NOARGS, NULL},
    {"_generator_create", generator_create, METH_O, NULL},
    {"_generator_set_seed", FAST(generator_set_seed), NULL},
    {"_generator_draw64", generator_draw64, METH_O, NULL},
    {"mark_step", mark_step, METH_NOARGS, "An iteration ends here. Never changes results."},
    {"_mark_optimizer_step", mark_optimizer, METH_NOARGS, NULL},
    {"_mark_dataloader", mark_dataloader, METH_NOARGS, NULL},
    {"_mark_backward", mark_backward, METH_NOARGS, NULL},
    {"stats", stats, METH_NOARGS, "Counters of what ran how, as a dict."},
    {"_stats_reset", stats_reset, METH_NOARGS, NULL},
    {"explain", explain, METH_NOARGS, "Plans, instructions and what each fuses, side exits and why, as text."},
    {"graphviz", graphviz, METH_NOARGS, "The last plans, for Graphviz."},
    {"info", info, METH_NOARGS, "Versions, instruction set, topology, options, as text."},
    {"synchronize", synchronize, METH_NOARGS, "Waits until every call so far has run; raises what was met."},
    {"set_executors", set_executors, METH_VARARGS,
     "set_executors(n, threads=0)\n\nn executors (0: one per NUMA node), which share the instructions of plans, of so many threads each\n"
     "(0: their share of the cores). What can't be is cut down; info() shows what is. ValueError: there can't be so many."},
    {"_set_coexecution", set_coexecution, METH_O, NULL},
    {"_set_sync", set_sync, METH_O, NULL},
    {"_shutdown", shut_down, METH_NOARGS, NULL},
    {"_fork_prepare", fork_prepare, METH_NOARGS, NULL},
    {"_fork_parent", fork_parent, METH_NOARGS, NULL},
    {"_fork_child", fork_child, METH_NOARGS, NULL},
    {"_register", register_python, METH_VARARGS, NULL},
    {NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, .m_name = "terra._C", .m_doc = "The native half of Terra.", .m_size = -1, .m_methods = methods,
};

static int fill(PyObject *module) {
    static const tr_host host = {gil_release, gil_acquire, check_signals, tr__py_site};
    if (tr__py_ops_prepare() < 0 || tr__py_check(tr_tracer_init(&host)) < 0)
        return -1;
    running = true;
    if (dtypes_init(module) < 0 || tr__py_tensor_init(module) < 0 || tr__py_ops_init(module) < 0 ||
        tr__py_interop_init(module) < 0 || tr__py_autograd_init(module) < 0 || tr__py_autocast_init(module) < 0 ||
        tr__py_test_init(module) < 0 || tr__py_site_init(module) < 0)
        return -1;
    return PyModule_AddStringConstant(module, "__version__", TR_VERSION);
}

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void) {
    PyObject *module = PyModule_Create(&module_def);
    if (module != NULL && fill(module) < 0)
        Py_CLEAR(module);
    return module;
}
