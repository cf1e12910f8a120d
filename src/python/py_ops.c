/* py_ops.c - the op table as Python functions and methods.
 *
 * Each row's schema becomes a `spec` once: interned parameter names, converted defaults. One parser serves every op:
 * positional and keyword arguments are put into slots, each slot is converted by its kind. Thin functions, one per row and
 * way of calling (function, method, in-place method), only say which row they are. */
#include "python/py.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PARAMS = TR_MAX_FIXED + 3, MAX_LIST = 4096 };

typedef struct spec {
    const tr_op_info *info;
    PyObject *names[MAX_PARAMS]; /* interned */
    tr_input in_default[TR_MAX_FIXED];
    int64_t attr_default[TR_MAX_ATTRS];
    uint8_t n_positional;
} spec;

static spec specs[TR_OP_COUNT];
static struct { PyObject *axis, *keepdims, *dim, *keepdim, *memory_format, *generator_state, *value, *src, *other; } names;

typedef enum call_as { AS_FUNCTION, AS_METHOD, AS_IN_PLACE } call_as;

/* ------------------------------------------------------------------------------------------------ conversions */

static bool is_numpy_scalar(PyObject *o) {
    const char *name = Py_TYPE(o)->tp_name;
    return strncmp(name, "numpy.", 6) == 0 && strcmp(name, "numpy.ndarray") != 0;
}

int tr__py_number(PyObject *o, tr_input *in) {
    if (PyFloat_Check(o)) {
        *in = tr_in_double(PyFloat_AS_DOUBLE(o));
        return 1;
    }
    if (PyBool_Check(o)) {
        *in = tr_in_bool(o == Py_True);
        return 1;
    }
    if (PyLong_Check(o)) {
        int overflow;
        long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
        if (overflow) {
            PyErr_SetString(PyExc_RuntimeError, "value cannot be converted to type int64_t without overflow");
            return -1;
        }
        *in = tr_in_int(v);
        return 1;
    }
    if (!is_numpy_scalar(o))
        return 0;
    if (strncmp(Py_TYPE(o)->tp_name, "numpy.bool", 10) == 0) {
        int truth = PyObject_IsTrue(o);
        *in = tr_in_bool(truth > 0);
        return truth < 0 ? -1 : 1;
    }
    if (PyIndex_Check(o)) {
        PyObject *i = PyNumber_Index(o);
        int r = i ? tr__py_number(i, in) : -1;
        Py_XDECREF(i);
        return r;
    }
    double d = PyFloat_AsDouble(o);
    if (d == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    *in = tr_in_double(d);
    return 1;
}

int tr__py_operand(PyObject *o, tr_input *in) {
    if (TR_LIKELY(tr__py_is_tensor(o))) {
        *in = tr_in(tr__py_t(o));
        return 1;
    }
    return tr__py_number(o, in);
}

int tr__py_int(PyObject *o, int64_t *out) {
    if (PyLong_Check(o)) {
        long long v = PyLong_AsLongLong(o);
        if (v == -1 && PyErr_Occurred())
            return -1;
        *out = v;
        return 0;
    }
    if (!PyIndex_Check(o)) {
        PyErr_Format(PyExc_TypeError, "must be int, not %s", Py_TYPE(o)->tp_name);
        return -1;
    }
    PyObject *i = PyNumber_Index(o);
    if (i == NULL)
        return -1;
    long long v = PyLong_AsLongLong(i);
    Py_DECREF(i);
    if (v == -1 && PyErr_Occurred())
        return -1;
    *out = v;
    return 0;
}

int tr__py_sizes(const char *what, PyObject *const *args, Py_ssize_t n, int64_t *out, int *count) {
    if (n == 1 && (PyTuple_Check(args[0]) || PyList_Check(args[0]))) {
        PyObject *list = args[0];
        n = PySequence_Fast_GET_SIZE(list);
        args = PySequence_Fast_ITEMS(list);
    }
    if (n > TR_MAX_DIMS) {
        PyErr_Format(PyExc_RuntimeError, "%s: at most %d dimensions are supported, got %zd", what, TR_MAX_DIMS, n);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if (tr__py_int(args[i], &out[i]) < 0) {
            if (PyErr_ExceptionMatches(PyExc_TypeError))
                PyErr_Format(PyExc_TypeError,
                             "%s(): argument 'size' must be tuple of ints, but found element of type %s "
                             "at pos %zd",
                             what, Py_TYPE(args[i])->tp_name, i);
            return -1;
        }
    *count = (int) n;
    return 0;
}

int tr__py_dtype_arg(const char *what, PyObject *o, tr_dtype *out) {
    if (Py_TYPE(o) == tr__py.dtype_type) {
        *out = ((py_dtype *) o)->dtype;
        return 0;
    }
    if (o == (PyObject *) &PyFloat_Type)
        *out = TR_F64;
    else if (o == (PyObject *) &PyLong_Type)
        *out = TR_I64;
    else if (o == (PyObject *) &PyBool_Type)
        *out = TR_BOOL;
    else {
        PyErr_Format(PyExc_TypeError, "%s(): argument 'dtype' must be torch.dtype, not %s", what, Py_TYPE(o)->tp_name);
        return -1;
    }
    return 0;
}

/* "add(): argument 'other' (position 2) must be Tensor, not str", as PyTorch words it. */
static int wrong(const spec *s, int i, call_as as, const char *expected, PyObject *got) {
    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s%s(): argument '%U' (position %d) must be %s, not %s", s->info->name,
                     as == AS_IN_PLACE ? "_" : "", s->names[i], as == AS_FUNCTION ? i + 1 : i, expected, Py_TYPE(got)->tp_name);
    return -1;
}

static const char *kind_name(tr_arg_kind kind) {
    switch (kind) {
        case TR_ARG_SCALAR:
            return "Number";
        case TR_ARG_GENERATOR:
            return "Generator";
        case TR_ARG_TENSORS:
            return "tuple of Tensors";
        case TR_ARG_INT:
        case TR_ARG_DIM:
            return "int";
        case TR_ARG_BOOL:
            return "bool";
        case TR_ARG_DIMS:
        case TR_ARG_SIZES:
            return "tuple of ints";
        case TR_ARG_DTYPE:
            return "torch.dtype";
        case TR_ARG_ONE_OF:
            return "str";
        default:
            return "Tensor";
    }
}

static int convert_scalar(PyObject *o, tr_input *in) {
    if (tr__py_is_tensor(o)) {
        tr_tensor *t = tr__py_t(o);
        tr_number v;
        if (tr__py_check(tr_tensor_item(t, &v)) < 0)
            return -1;
        *in = tr_dtype_is_float(t->meta->dtype) ? tr_in_double(v.d) : tr_in_int(v.i);
        return 1;
    }
    return tr__py_number(o, in);
}

static int convert_generator(PyObject *o, tr_input *in) {
    if (tr__py_is_tensor(o)) {
        *in = tr_in(tr__py_t(o));
        return 1;
    }
    PyObject *state = PyObject_GetAttr(o, names.generator_state);
    if (state == NULL || !tr__py_is_tensor(state)) {
        PyErr_Clear();
        Py_XDECREF(state);
        return 0;
    }
    *in = tr_in(tr__py_t(state)); /* the Generator keeps it alive over the call */
    Py_DECREF(state);
    return 1;
}

static int convert_operand(const tr_param *p, PyObject *o, tr_input *in) {
    switch (p->kind) {
        case TR_ARG_TENSOR:
            if (!tr__py_is_tensor(o))
                return 0;
            *in = tr_in(tr__py_t(o));
            return 1;
        case TR_ARG_OPERAND:
            return tr__py_operand(o, in);
        case TR_ARG_SCALAR:
            return convert_scalar(o, in);
        default:
            return convert_generator(o, in);
    }
}

static int convert_dims(PyObject *o, int ndim, int64_t *mask) {
    int64_t d, wrapped;
    *mask = 0;
    if (!PyTuple_Check(o) && !PyList_Check(o)) {
        if (tr__py_int(o, &d) < 0 || tr__py_check(tr_wrap_dim(d, ndim, &wrapped)) < 0)
            return -1;
        *mask = ndim ? (int64_t) 1 << wrapped : 0;
        return 0;
    }
    Py_ssize_t n = PySequence_Fast_GET_SIZE(o);
    for (Py_ssize_t i = 0; i < n; i++) {
        if (tr__py_int(PySequence_Fast_GET_ITEM(o, i), &d) < 0 || tr__py_check(tr_wrap_dim(d, ndim, &wrapped)) < 0)
            return -1;
        if (*mask >> wrapped & 1) {
            PyErr_Format(PyExc_RuntimeError, "dim %lld appears multiple times in the list of dims", (long long) wrapped);
            return -1;
        }
        if (ndim)
            *mask |= (int64_t) 1 << wrapped;
    }
    if (n == 0)
        *mask = ((int64_t) 1 << ndim) - 1;
    return 0;
}

static int convert_ints(PyObject *o, int n, int64_t *slots) {
    if (!PyTuple_Check(o) && !PyList_Check(o)) {
        if (tr__py_int(o, &slots[0]) < 0)
            return -1;
        for (int i = 1; i < n; i++)
            slots[i] = slots[0];
        return 0;
    }
    Py_ssize_t given = PySequence_Fast_GET_SIZE(o);
    if (given != n && given != 1) {
        PyErr_Format(PyExc_RuntimeError, "expected %d ints, got %zd", n, given);
        return -1;
    }
    for (int i = 0; i < n; i++)
        if (tr__py_int(PySequence_Fast_GET_ITEM(o, given == 1 ? 0 : i), &slots[i]) < 0)
            return -1;
    return 0;
}

static int convert_choice(const tr_param *p, PyObject *o, int64_t *slot) {
    const char *text = o == Py_None ? "None" : PyUnicode_Check(o) ? PyUnicode_AsUTF8(o) : NULL;
    if (text == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "must be str");
        return -1;
    }
    size_t length = strlen(text);
    const char *at = p->choices;
    for (int i = 0; *at; i++) {
        size_t n = strcspn(at, ",");
        if (n == length && strncmp(at, text, n) == 0) {
            *slot = i;
            return 0;
        }
        at += n + (at[n] == ',');
    }
    PyErr_Format(PyExc_RuntimeError, "%s must be one of %s, but got %s", p->name, p->choices, text);
    return -1;
}

static int convert_attr(const tr_param *p, PyObject *o, int ndim, int64_t *slots) {
    int64_t v;
    int n;
    tr_dtype dtype;
    switch (p->kind) {
        case TR_ARG_INT:
            return convert_ints(o, p->slots, slots);
        case TR_ARG_BOOL:
            if (!PyBool_Check(o) && !PyLong_Check(o) && !is_numpy_scalar(o)) {
                PyErr_SetString(PyExc_TypeError, "must be bool");
                return -1;
            }
            n = PyObject_IsTrue(o);
            slots[0] = n;
            return n < 0 ? -1 : 0;
        case TR_ARG_DIM:
            if (tr__py_int(o, &v) < 0)
                return -1;
            return tr__py_check(tr_wrap_dim(v, ndim, &slots[0]));
        case TR_ARG_DIMS:
            return convert_dims(o, ndim, &slots[0]);
        case TR_ARG_DTYPE:
            if (tr__py_dtype_arg("", o, &dtype) < 0)
                return -1;
            slots[0] = dtype;
            return 0;
        case TR_ARG_ONE_OF:
            return convert_choice(p, o, &slots[0]);
        default:
            memset(slots + 1, 0, TR_MAX_DIMS * sizeof *slots);
            if (tr__py_sizes(p->name, &o, 1, slots + 1, &n) < 0)
                return -1;
            slots[0] = n;
            return 0;
    }
}

/* ------------------------------------------------------------------------------------------------ the parser */

static int place_keyword(const spec *s, PyObject *name, PyObject *value, PyObject **vals, call_as as) {
    if (name == names.axis)
        name = names.dim;
    else if (name == names.keepdims)
        name = names.keepdim;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < s->info->n_params; i++)
            if (s->names[i] == name || (round && PyUnicode_Compare(s->names[i], name) == 0)) {
                if (vals[i] != NULL) {
                    PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", s->info->name, name);
                    return -1;
                }
                vals[i] = value;
                return 0;
            }
    if (name == names.memory_format)
        return 0;
    if (name == names.value && s->info->op_class == TR_CLASS_IDX)
        return place_keyword(s, names.src, value, vals, as);
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", s->info->name, name);
    return -1;
}

static int place(const spec *s, PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames, PyObject **vals,
                 call_as as) {
    int first = self != NULL;
    int n_params = s->info->n_params;
    memset(vals, 0, sizeof(PyObject *) * MAX_PARAMS);
    vals[0] = self;
    if (n + first > s->n_positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d positional argument%s but %zd %s given", s->info->name,
                     s->n_positional - first, s->n_positional - first == 1 ? "" : "s", n, n == 1 ? "was" : "were");
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        vals[i + first] = args[i];
    Py_ssize_t n_kw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < n_kw; i++)
        if (place_keyword(s, PyTuple_GET_ITEM(kwnames, i), args[n + i], vals, as) < 0)
            return -1;
    for (int i = 0; i < n_params; i++)
        if (vals[i] == NULL && !s->info->params[i].has_default && !s->info->params[i].optional) {
            PyErr_Format(PyExc_TypeError, "%s() missing 1 required positional arguments: \"%U\"", s->info->name, s->names[i]);
            return -1;
        }
    return 0;
}

static int convert_list(const spec *s, int i, PyObject *o, tr_input *in, int *n_in, call_as as) {
    if (!PyTuple_Check(o) && !PyList_Check(o))
        return wrong(s, i, as, "tuple of Tensors", o);
    Py_ssize_t n = PySequence_Fast_GET_SIZE(o);
    if (n > MAX_LIST) {
        PyErr_Format(PyExc_RuntimeError, "%s: at most %d tensors at once", s->info->name, MAX_LIST);
        return -1;
    }
    for (Py_ssize_t k = 0; k < n; k++) {
        PyObject *item = PySequence_Fast_GET_ITEM(o, k);
        if (!tr__py_is_tensor(item)) {
            PyErr_Format(PyExc_TypeError, "expected Tensor as element %zd in argument %d, but got %s", k, i,
                         Py_TYPE(item)->tp_name);
            return -1;
        }
        in[(*n_in)++] = tr_in(tr__py_t(item));
    }
    return 0;
}

/* Fills operands, then attributes (whose dimensions wrap over the first tensor). */
static int convert(const spec *s, PyObject **vals, tr_input *in, int *n_in, int64_t *attrs, call_as as) {
    const tr_op_info *info = s->info;
    *n_in = info->n_operands;
    for (int i = 0; i < info->n_params; i++) {
        const tr_param *p = &info->params[i];
        if (p->kind == TR_ARG_TENSORS) {
            if (convert_list(s, i, vals[i], in, n_in, as) < 0)
                return -1;
            continue;
        }
        if (p->kind > TR_ARG_TENSORS)
            continue;
        if (vals[i] == NULL || (vals[i] == Py_None && p->optional)) {
            in[p->at] = s->in_default[p->at];
            continue;
        }
        int r = convert_operand(p, vals[i], &in[p->at]);
        if (r <= 0)
            return r < 0 && PyErr_Occurred() ? -1 : wrong(s, i, as, kind_name(p->kind), vals[i]);
    }
    int ndim = 0;
    for (int i = 0; i < *n_in; i++)
        if (in[i].tensor) {
            ndim = in[i].tensor->meta->ndim;
            break;
        }
    memcpy(attrs, s->attr_default, sizeof(int64_t) * info->n_attrs);
    for (int i = 0; i < info->n_params; i++) {
        const tr_param *p = &info->params[i];
        if (p->kind < TR_ARG_INT)
            continue;
        bool none = vals[i] == Py_None && p->kind != TR_ARG_ONE_OF;
        if (vals[i] == NULL || none) {
            if (none && !p->optional && strcmp(p->value, "None") != 0)
                return wrong(s, i, as, kind_name(p->kind), vals[i]);
            if (p->kind == TR_ARG_DIMS)
                attrs[p->at] = ((int64_t) 1 << ndim) - 1;
            else if (p->kind == TR_ARG_DIM && !none && p->value[0] == '-')
                attrs[p->at] = ndim ? ndim + atoi(p->value) : 0;
            continue;
        }
        if (convert_attr(p, vals[i], ndim, &attrs[p->at]) < 0)
            return PyErr_ExceptionMatches(PyExc_TypeError) ? wrong(s, i, as, kind_name(p->kind), vals[i]) : -1;
    }
    return 0;
}

PyObject *tr__py_call(tr_op op, const tr_input *in, int n_in, const int64_t *attrs, bool in_place) {
    tr_tensor *out[TR_MAX_OUTPUTS] = {NULL};
    tr_status status = tr_apply(op, in, n_in, attrs, NULL, in_place, out);
    if (TR_UNLIKELY(status != TR_OK))
        return tr__py_raise(status);
    int n = in_place ? 1 : specs[op].info->n_outputs;
    if (TR_LIKELY(n <= 1))
        return tr__py_wrap(out[0]);
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; i < n; i++) {
        PyObject *o = tuple ? tr__py_wrap(out[i]) : NULL;
        if (o == NULL) {
            if (tuple == NULL)
                tr_tensor_release(out[i]);
            Py_CLEAR(tuple);
            continue;
        }
        PyTuple_SET_ITEM(tuple, i, o);
    }
    return tuple;
}

static PyObject *run(tr_op op, PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames, call_as as) {
    const spec *s = &specs[op];
    PyObject *vals[MAX_PARAMS];
    if (s->info->op_class == TR_CLASS_NEW)
        return PyErr_Format(PyExc_TypeError, "%s(): made by the functions _new_*", s->info->name);
    if (place(s, self, args, n, kwnames, vals, as) < 0)
        return NULL;
    tr_input in[TR_MAX_FIXED + MAX_LIST];
    int64_t attrs[TR_MAX_ATTRS];
    int n_in;
    if (convert(s, vals, in, &n_in, attrs, as) < 0)
        return NULL;
    return tr__py_call(op, in, n_in, attrs, as == AS_IN_PLACE);
}

/* ------------------------------------------------------------------------------------------------ one function per row */

#define TR_OP(id, expose, class, rule, vjp, schema)                                          \
    static PyObject *f_##id(PyObject *m, PyObject *const *a, Py_ssize_t n, PyObject *k) {    \
        return run(TR_OP_##id, NULL, a, n, k, AS_FUNCTION);                                  \
    }                                                                                        \
    static PyObject *m_##id(PyObject *self, PyObject *const *a, Py_ssize_t n, PyObject *k) { \
        return run(TR_OP_##id, self, a, n, k, AS_METHOD);                                    \
    }                                                                                        \
    static PyObject *i_##id(PyObject *self, PyObject *const *a, Py_ssize_t n, PyObject *k) { \
        return run(TR_OP_##id, self, a, n, k, AS_IN_PLACE);                                  \
    }
#include "terra/ops.def"
#undef TR_OP

#define FLAGS (METH_FASTCALL | METH_KEYWORDS)
static PyMethodDef functions[] = {
#define TR_OP(id, expose, class, rule, vjp, schema) {#id, (PyCFunction) (void (*)(void)) f_##id, FLAGS, schema},
#include "terra/ops.def"
#undef TR_OP
    {NULL},
};
static PyMethodDef all_methods[] = {
#define TR_OP(id, expose, class, rule, vjp, schema) {#id, (PyCFunction) (void (*)(void)) m_##id, FLAGS, schema},
#include "terra/ops.def"
#undef TR_OP
};
static PyMethodDef all_in_place[] = {
#define TR_OP(id, expose, class, rule, vjp, schema) {#id "_", (PyCFunction) (void (*)(void)) i_##id, FLAGS, schema},
#include "terra/ops.def"
#undef TR_OP
};

PyMethodDef tr__py_op_methods[2 * TR_OP_COUNT + 2];

/* ------------------------------------------------------------------------------------------------ set-up */

static tr_input default_input(const tr_param *p) {
    if (!p->has_default || strcmp(p->value, "None") == 0)
        return (tr_input){0};
    return strpbrk(p->value, ".e") ? tr_in_double(atof(p->value)) : tr_in_int(atoll(p->value));
}

static void default_attr(const tr_param *p, int64_t *slots) {
    const char *v = p->value;
    switch (p->kind) {
        case TR_ARG_INT:
            for (int i = 0; i < p->slots; i++)
                slots[i] = atoll(v);
            break;
        case TR_ARG_BOOL:
            slots[0] = strcmp(v, "True") == 0;
            break;
        case TR_ARG_DIM:
            slots[0] = p->has_default && strcmp(v, "None") != 0 ? atoll(v) : TR_NONE;
            break;
        case TR_ARG_DTYPE:
            slots[0] = -1;
            break;
        case TR_ARG_ONE_OF: {
            const char *at = p->choices;
            size_t n;
            for (int i = 0; *at && p->has_default; i++, at += n + (at[n] == ',')) {
                n = strcspn(at, ",");
                if (strlen(v) == n && strncmp(v, at, n) == 0)
                    slots[0] = i;
            }
            break;
        }
        default:
            break;
    }
}

static int prepare(spec *s, const tr_op_info *info) {
    s->info = info;
    bool keyword_only = false;
    for (int i = 0; i < info->n_params; i++) {
        const tr_param *p = &info->params[i];
        if ((s->names[i] = PyUnicode_InternFromString(p->name)) == NULL)
            return -1;
        if (p->keyword_only)
            keyword_only = true;
        if (!keyword_only)
            s->n_positional++;
        if (p->kind < TR_ARG_TENSORS)
            s->in_default[p->at] = default_input(p);
        else if (p->kind > TR_ARG_TENSORS)
            default_attr(p, &s->attr_default[p->at]);
    }
    return 0;
}

int tr__py_ops_prepare(void) {
    if (tr__py_check(tr_op_init()) < 0)
        return -1;
    struct {
        PyObject **at;
        const char *text;
    } interned[] = {
        {&names.axis, "axis"},
        {&names.keepdims, "keepdims"},
        {&names.dim, "dim"},
        {&names.keepdim, "keepdim"},
        {&names.memory_format, "memory_format"},
        {&names.generator_state, "_state"},
        {&names.value, "value"},
        {&names.src, "src"},
        {&names.other, "other"},
    };
    for (size_t i = 0; i < sizeof interned / sizeof *interned; i++)
        if ((*interned[i].at = PyUnicode_InternFromString(interned[i].text)) == NULL)
            return -1;
    PyMethodDef *to = tr__py_op_methods;
    for (int op = 0; op < TR_OP_COUNT; op++) {
        const tr_op_info *info = tr_op_info_of((tr_op) op);
        if (prepare(&specs[op], info) < 0)
            return -1;
        if (info->expose & TR_EXPOSE_M)
            *to++ = all_methods[op];
        if (info->expose & TR_EXPOSE_I)
            *to++ = all_in_place[op];
    }
    *to++ = all_methods[TR_OP_squeeze];
    *to = (PyMethodDef){NULL};
    return 0;
}

/* _C.op.<every row>, and _C.<row> for those that Python users see. */
int tr__py_ops_init(PyObject *module) {
    PyObject *op = PyModule_New("terra._C.op");
    if (op == NULL || PyModule_AddFunctions(op, functions) < 0 || PyModule_AddObjectRef(module, "op", op) < 0) {
        Py_XDECREF(op);
        return -1;
    }
    PyObject *exposed = PyList_New(0);
    int failed = exposed == NULL;
    for (int i = 0; i < TR_OP_COUNT && !failed; i++) {
        if (!(specs[i].info->expose & TR_EXPOSE_F) && i != TR_OP_squeeze)
            continue;
        PyObject *name = PyUnicode_FromString(functions[i].ml_name);
        PyObject *fn = name ? PyObject_GetAttr(op, name) : NULL;
        failed = fn == NULL || PyList_Append(exposed, name) < 0 || PyModule_AddObjectRef(module, functions[i].ml_name, fn) < 0;
        Py_XDECREF(fn);
        Py_XDECREF(name);
    }
    failed = failed || PyModule_AddObjectRef(module, "_functions", exposed) < 0;
    Py_XDECREF(exposed);
    Py_DECREF(op);
    return failed ? -1 : 0;
}
