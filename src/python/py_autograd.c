/* py_autograd.c - the tape's Python face: grad_fn objects, hooks, the reverse pass, and nodes that Python defines. */
#include "python/py.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------ nodes */

typedef struct py_node {
    PyObject_HEAD tr_node *node; /* retained */
} py_node;

PyObject *tr__py_wrap_node(tr_node *node) {
    if (node == NULL)
        Py_RETURN_NONE;
    py_node *o = (py_node *) tr__py.node_type->tp_alloc(tr__py.node_type, 0);
    if (o == NULL)
        return NULL;
    tr_node_retain(node);
    o->node = node;
    return (PyObject *) o;
}

static void node_dealloc(PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    tr_node *node = ((py_node *) o)->node;
    type->tp_free(o);
    Py_DECREF(type);
    tr_node_release(node);
}

static PyObject *node_repr(PyObject *o) {
    return PyUnicode_FromFormat("<%s object at %p>", tr_node_name(((py_node *) o)->node), (void *) ((py_node *) o)->node);
}
static PyObject *node_name(PyObject *o, PyObject *unused) {
    return PyUnicode_FromString(tr_node_name(((py_node *) o)->node));
}

static PyObject *node_next_functions(PyObject *o, void *c) {
    const tr_node *node = ((py_node *) o)->node;
    int n = tr_node_n_next(node);
    PyObject *all = PyTuple_New(n);
    for (int i = 0; all && i < n; i++) {
        int nr = 0;
        tr_node *next = tr_node_next(node, i, &nr);
        PyObject *pair = Py_BuildValue("(Ni)", tr__py_wrap_node(next), nr);
        if (pair == NULL)
            Py_CLEAR(all);
        else
            PyTuple_SET_ITEM(all, i, pair);
    }
    return all;
}

static PyObject *node_variable(PyObject *o, void *c) {
    tr_tensor *leaf = tr_node_variable(((py_node *) o)->node);
    if (leaf == NULL)
        return PyErr_Format(PyExc_AttributeError, "'%s' object has no attribute 'variable'",
                            tr_node_name(((py_node *) o)->node));
    return tr__py_wrap_borrowed(leaf);
}

static PyObject *node_compare(PyObject *a, PyObject *b, int how) {
    if ((how != Py_EQ && how != Py_NE) || Py_TYPE(b) != tr__py.node_type)
        Py_RETURN_NOTIMPLEMENTED;
    bool same = ((py_node *) a)->node == ((py_node *) b)->node;
    return PyBool_FromLong(same == (how == Py_EQ));
}
static Py_hash_t node_hash(PyObject *o) {
    return _Py_HashPointer(((py_node *) o)->node);
}

static PyMethodDef node_methods[] = {{"name", node_name, METH_NOARGS, NULL}, {NULL}};
static PyGetSetDef node_getset[] = {{"next_functions", node_next_functions}, {"variable", node_variable}, {NULL}};
static PyType_Slot node_slots[] = {
    {Py_tp_dealloc, node_dealloc},
    {Py_tp_repr, node_repr},
    {Py_tp_methods, node_methods},
    {Py_tp_getset, node_getset},
    {Py_tp_richcompare, node_compare},
    {Py_tp_hash, node_hash},
    {0, NULL},
};
static PyType_Spec node_spec = {
    .name = "terra.autograd.graph.Node",
    .basicsize = sizeof(py_node),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = node_slots,
};

/* ------------------------------------------------------------------------------------------------ hooks */

/* Owned twice: by the tensor's hook list in C, and by the list on its Python object, which shows it to the collector. */
typedef struct py_hook {
    PyObject_HEAD PyObject *fn;
    uint64_t id;
} py_hook;

static int hook_traverse(PyObject *o, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(o));
    Py_VISIT(((py_hook *) o)->fn);
    return 0;
}
static int hook_clear(PyObject *o) {
    Py_CLEAR(((py_hook *) o)->fn);
    return 0;
}
static void hook_dealloc(PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    PyObject_GC_UnTrack(o);
    hook_clear(o);
    type->tp_free(o);
    Py_DECREF(type);
}
static PyType_Slot hook_slots[] = {
    {Py_tp_dealloc, hook_dealloc}, {Py_tp_traverse, hook_traverse}, {Py_tp_clear, hook_clear}, {0, NULL}};
static PyType_Spec hook_spec = {
    .name = "terra._C._Hook",
    .basicsize = sizeof(py_hook),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = hook_slots,
};

int tr__py_hooks_traverse(py_tensor *self, visitproc visit, void *arg) {
    Py_VISIT(self->hooks);
    /* The C list's references are this object's only while nobody else holds the tensor. */
    if (self->hooks && self->t && self->t->refs == 1)
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->hooks); i++)
            Py_VISIT(PyList_GET_ITEM(self->hooks, i));
    return 0;
}

void tr__py_hooks_clear(py_tensor *self) {
    PyObject *hooks = self->hooks;
    self->hooks = NULL;
    for (Py_ssize_t i = 0; hooks && self->t && self->t->refs == 1 && i < PyList_GET_SIZE(hooks); i++)
        tr_tensor_remove_hook(self->t, ((py_hook *) PyList_GET_ITEM(hooks, i))->id);
    Py_XDECREF(hooks);
}

static tr_status hook_call(void *arg, tr_tensor *grad, tr_tensor **replacement) {
    PyObject *fn = ((py_hook *) arg)->fn;
    *replacement = NULL;
    if (fn == NULL)
        return TR_OK;
    PyObject *g = tr__py_wrap_borrowed(grad);
    PyObject *r = g ? PyObject_CallOneArg(fn, g) : NULL;
    Py_XDECREF(g);
    if (r == NULL)
        return TR_E_PYTHON;
    if (r != Py_None && !tr__py_is_tensor(r)) {
        PyErr_Format(PyExc_TypeError, "hooks must return None or a Tensor, not %s", Py_TYPE(r)->tp_name);
        Py_DECREF(r);
        return TR_E_PYTHON;
    }
    if (r != Py_None) {
        *replacement = tr__py_t(r);
        tr_tensor_retain(*replacement);
    }
    Py_DECREF(r);
    return TR_OK;
}

static void hook_drop(void *arg) {
    Py_DECREF((PyObject *) arg);
}

typedef tr_status (*add_hook)(tr_tensor *, tr_hook_fn, void *, void (*)(void *), uint64_t *);

static PyObject *register_with(PyObject *self, PyObject *fn, add_hook add) {
    py_tensor *p = (py_tensor *) self;
    if (p->hooks == NULL && (p->hooks = PyList_New(0)) == NULL)
        return NULL;
    py_hook *h = (py_hook *) tr__py.hook_type->tp_alloc(tr__py.hook_type, 0);
    if (h == NULL)
        return NULL;
    h->fn = Py_NewRef(fn);
    Py_INCREF(h); /* the C list's */
    tr_status status = add(p->t, hook_call, h, hook_drop, &h->id);
    if (status) {
        Py_DECREF(h);
        Py_DECREF(h);
        return tr__py_raise(status);
    }
    if (PyList_Append(p->hooks, (PyObject *) h) < 0) {
        tr_tensor_remove_hook(p->t, h->id);
        Py_DECREF(h);
        return NULL;
    }
    uint64_t id = h->id;
    Py_DECREF(h);
    return PyLong_FromUnsignedLongLong(id);
}

PyObject *tr__py_register_hook(PyObject *self, PyObject *fn) {
    return register_with(self, fn, tr_tensor_add_hook);
}
PyObject *tr__py_register_post_hook(PyObject *self, PyObject *fn) {
    return register_with(self, fn, tr_tensor_add_post_accumulate_hook);
}

PyObject *tr__py_remove_hook(PyObject *self, PyObject *number) {
    py_tensor *p = (py_tensor *) self;
    uint64_t id = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    for (Py_ssize_t i = 0; p->hooks && i < PyList_GET_SIZE(p->hooks); i++)
        if (((py_hook *) PyList_GET_ITEM(p->hooks, i))->id == id) {
            if (PyList_SetSlice(p->hooks, i, i + 1, NULL) < 0)
                return NULL;
            break;
        }
    tr_tensor_remove_hook(p->t, id);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------------------------------------ the reverse pass */

enum { MAX_SMALL = 16 };

/* A tuple of tensors (None allowed where `none`) as an array; borrowed elements. NULL with an exception. */
static tr_tensor **tensors_of(PyObject *tuple, bool none, tr_tensor **small) {
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "a tuple of Tensors is needed");
        return NULL;
    }
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    tr_tensor **all = n <= MAX_SMALL ? small : PyMem_Calloc((size_t) n, sizeof *all);
    if (all == NULL)
        return (tr_tensor **) PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *o = PyTuple_GET_ITEM(tuple, i);
        if (!tr__py_is_tensor(o) && !(none && o == Py_None)) {
            PyErr_Format(PyExc_TypeError, "element %zd of tuple is not a Tensor but %s", i, Py_TYPE(o)->tp_name);
            if (all != small)
                PyMem_Free(all);
            return NULL;
        }
        all[i] = o == Py_None ? NULL : tr__py_t(o);
    }
    return all;
}

static PyObject *tuple_from(tr_tensor **all, Py_ssize_t n) {
    PyObject *tuple = PyTuple_New(n);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *o = all[i] == NULL ? Py_NewRef(Py_None) : tr__py_wrap(all[i]);
        if (o == NULL || tuple == NULL) {
            Py_XDECREF(o);
            Py_CLEAR(tuple);
            continue;
        }
        PyTuple_SET_ITEM(tuple, i, o);
    }
    return tuple;
}

/* _backward(roots, grads, inputs or None, retain_graph, create_graph, accumulate) -> None, or the inputs' gradients. */
static PyObject *run_backward(PyObject *module, PyObject *args) {
    PyObject *roots, *grads, *inputs, *result = NULL;
    int retain, create, accumulate;
    if (!PyArg_ParseTuple(args, "O!O!Oppp:_backward", &PyTuple_Type, &roots, &PyTuple_Type, &grads, &inputs, &retain, &create,
                          &accumulate))
        return NULL;
    tr_tensor *r_small[MAX_SMALL], *g_small[MAX_SMALL], *i_small[MAX_SMALL];
    tr_tensor **r = tensors_of(roots, false, r_small), **g = r ? tensors_of(grads, true, g_small) : NULL, **in = NULL,
              **out = NULL;
    Py_ssize_t n_in = inputs == Py_None ? 0 : PyObject_Size(inputs);
    if (g && inputs != Py_None) {
        in = tensors_of(inputs, false, i_small);
        out = in ? PyMem_Calloc((size_t) n_in + 1, sizeof *out) : NULL;
    }
    if (g && (inputs == Py_None || out)) {
        tr_backward_args a = {.roots = r,
                              .grads = g,
                              .n_roots = (int) PyTuple_GET_SIZE(roots),
                              .inputs = in,
                              .out_grads = out,
                              .n_inputs = (int) n_in,
                              .accumulate = accumulate,
                              .retain_graph = retain,
                              .create_graph = create};
        tr_status status = tr_backward(&a);
        if (status)
            tr__py_raise(status);
        else
            result = out && !accumulate ? tuple_from(out, n_in) : Py_NewRef(Py_None);
    } else if (!PyErr_Occurred())
        PyErr_NoMemory();
    PyMem_Free(out);
    if (in != i_small)
        PyMem_Free(in);
    if (g != g_small)
        PyMem_Free(g);
    if (r != r_small)
        PyMem_Free(r);
    return result;
}

/* ------------------------------------------------------------------------------------------------ nodes of Python */

/* Holds autograd.Function's backward; owned by the node, and by the ctx in Python. */
typedef struct py_custom {
    PyObject_HEAD PyObject *backward; /* backward(grads tuple) -> tuple; NULL once the node died */
    tr_node *node;                    /* borrowed; NULL once it died */
} py_custom;

static int custom_traverse(PyObject *o, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(o));
    Py_VISIT(((py_custom *) o)->backward);
    return 0;
}
static int custom_clear(PyObject *o) {
    Py_CLEAR(((py_custom *) o)->backward);
    return 0;
}
static void custom_dealloc(PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    PyObject_GC_UnTrack(o);
    custom_clear(o);
    type->tp_free(o);
    Py_DECREF(type);
}

/* attach(tensor, nr): makes a detached tensor the node's output nr, for saved outputs. */
static PyObject *custom_attach(PyObject *o, PyObject *args) {
    py_custom *c = (py_custom *) o;
    PyObject *tensor;
    int nr;
    if (!PyArg_ParseTuple(args, "O!i:attach", tr__py.tensor_type, &tensor, &nr))
        return NULL;
    tr_tensor *t = tr__py_t(tensor);
    if (c->node != NULL && t->grad_fn == NULL) {
        tr_node_retain(c->node);
        t->grad_fn = c->node;
        t->output_nr = (uint16_t) nr;
        t->requires_grad = true;
    }
    return Py_NewRef(tensor);
}

static PyMethodDef custom_methods[] = {{"attach", custom_attach, METH_VARARGS, NULL}, {NULL}};
static PyType_Slot custom_slots[] = {{Py_tp_dealloc, custom_dealloc},
                                     {Py_tp_traverse, custom_traverse},
                                     {Py_tp_clear, custom_clear},
                                     {Py_tp_methods, custom_methods},
                                     {0, NULL}};
static PyType_Spec custom_spec = {
    .name = "terra._C._CustomNode",
    .basicsize = sizeof(py_custom),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = custom_slots,
};

static tr_status custom_backward(void *arg, int n_out, tr_tensor *const *grads, int n_in, tr_tensor **result) {
    py_custom *c = arg;
    PyObject *in = PyTuple_New(n_out);
    if (in == NULL || c->backward == NULL) {
        Py_XDECREF(in);
        return in ? TR_FAIL(TR_E_RUNTIME, "backward of a node that is gone") : TR_E_PYTHON;
    }
    for (int i = 0; i < n_out; i++) {
        PyObject *g = tr__py_wrap_borrowed(grads[i]);
        if (g == NULL) {
            Py_DECREF(in);
            return TR_E_PYTHON;
        }
        PyTuple_SET_ITEM(in, i, g);
    }
    PyObject *out = PyObject_CallOneArg(c->backward, in);
    Py_DECREF(in);
    if (out == NULL)
        return TR_E_PYTHON;
    tr_status status = TR_OK;
    if (!PyTuple_Check(out) || PyTuple_GET_SIZE(out) != n_in)
        status = TR_FAIL(TR_E_RUNTIME, "function returned an incorrect number of gradients (expected %d)", n_in);
    for (int i = 0; status == TR_OK && i < n_in; i++) {
        PyObject *g = PyTuple_GET_ITEM(out, i);
        result[i] = NULL;
        if (tr__py_is_tensor(g)) {
            result[i] = tr__py_t(g);
            tr_tensor_retain(result[i]);
        }
    }
    Py_DECREF(out);
    return status;
}

static void custom_drop(void *arg) {
    py_custom *c = arg;
    c->node = NULL;
    Py_CLEAR(c->backward);
    Py_DECREF(c);
}

/* _custom_connect(name, backward, inputs, outputs, differentiable) -> node handle. `name` must be an interned str. */
static PyObject *custom_connect(PyObject *module, PyObject *args) {
    PyObject *name, *backward, *inputs, *outputs, *flags;
    if (!PyArg_ParseTuple(args, "UOO!O!O!:_custom_connect", &name, &backward, &PyTuple_Type, &inputs, &PyTuple_Type, &outputs,
                          &PyTuple_Type, &flags))
        return NULL;
    Py_ssize_t n_in = PyTuple_GET_SIZE(inputs), n_out = PyTuple_GET_SIZE(outputs);
    bool differentiable[MAX_SMALL];
    if (n_out > MAX_SMALL || PyTuple_GET_SIZE(flags) != n_out)
        return PyErr_Format(PyExc_RuntimeError, "a Function may have at most %d outputs", MAX_SMALL);
    for (Py_ssize_t i = 0; i < n_out; i++)
        differentiable[i] = PyTuple_GET_ITEM(flags, i) == Py_True;
    tr_tensor *in_small[MAX_SMALL], *out_small[MAX_SMALL];
    tr_tensor **in = tensors_of(inputs, false, in_small), **out = in ? tensors_of(outputs, false, out_small) : NULL;
    py_custom *c = out ? (py_custom *) tr__py.custom_type->tp_alloc(tr__py.custom_type, 0) : NULL;
    if (c) {
        c->backward = Py_NewRef(backward);
        Py_INCREF(c); /* the node's */
        PyUnicode_InternInPlace(&name);
        Py_INCREF(name); /* the tape keeps the text: one name per Function class, never freed */
        tr_custom_node node = {PyUnicode_AsUTF8(name), c, custom_backward, custom_drop};
        tr_status status = tr_custom_connect(&node, in, (int) n_in, out, differentiable, (int) n_out, &c->node);
        if (status) {
            Py_DECREF(c);
            Py_CLEAR(c);
            tr__py_raise(status);
        }
    }
    if (in != in_small)
        PyMem_Free(in);
    if (out != out_small)
        PyMem_Free(out);
    return (PyObject *) c;
}

/* ------------------------------------------------------------------------------------------------ grad mode */

static PyObject *is_grad_enabled(PyObject *module, PyObject *unused) {
    return PyBool_FromLong(tr_grad_enabled());
}
static PyObject *set_grad_enabled(PyObject *module, PyObject *on) {
    int truth = PyObject_IsTrue(on);
    return truth < 0 ? NULL : PyBool_FromLong(tr_set_grad_enabled(truth));
}

static PyMethodDef methods[] = {
    {"_backward", run_backward, METH_VARARGS, NULL},
    {"_custom_connect", custom_connect, METH_VARARGS, NULL},
    {"is_grad_enabled", is_grad_enabled, METH_NOARGS, "Whether ops are recorded for backward."},
    {"_set_grad_enabled", set_grad_enabled, METH_O, "Returns the former mode."},
    {NULL},
};

int tr__py_autograd_init(PyObject *module) {
    tr__py.node_type = (PyTypeObject *) PyType_FromSpec(&node_spec);
    tr__py.hook_type = (PyTypeObject *) PyType_FromSpec(&hook_spec);
    tr__py.custom_type = (PyTypeObject *) PyType_FromSpec(&custom_spec);
    if (tr__py.node_type == NULL || tr__py.hook_type == NULL || tr__py.custom_type == NULL)
        return -1;
    if (PyModule_AddObjectRef(module, "Node", (PyObject *) tr__py.node_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, methods);
}
