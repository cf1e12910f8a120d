/* py_index.c - x[key] and x[key] = value, as PyTorch: ints, slices, None, Ellipsis, bools, tensors, arrays, lists.
 *
 * The basic part of a key becomes a chain of views; what remains are index tensors, one per dimension, for tr_index_get and
 * tr_index_put. */
#include "python/py.h"

#include <string.h>

enum { MAX_KEYS = 32 };

typedef struct walk {
    tr_tensor *x;                  /* owned: the view so far */
    int dim;                       /* next dimension of x */
    tr_tensor *index[TR_MAX_DIMS]; /* owned */
    int n_index;                   /* 0: a basic key */
    bool alias_needed;             /* no view was made yet */
} walk;

static void walk_free(walk *w) {
    tr_tensor_release(w->x);
    for (int i = 0; i < w->n_index; i++)
        tr_tensor_release(w->index[i]);
}

static int view_call(walk *w, tr_op op, const int64_t *attrs) {
    tr_input in = tr_in(w->x);
    tr_tensor *out = NULL;
    if (tr__py_check(tr_apply(op, &in, 1, attrs, NULL, false, &out)) < 0)
        return -1;
    tr_tensor_release(w->x);
    w->x = out;
    w->alias_needed = false;
    return 0;
}

static int take_int(walk *w, int64_t i) {
    const tr_meta *m = w->x->meta;
    int64_t n = m->shape[w->dim];
    if (i < -n || i >= n) {
        PyErr_Format(PyExc_IndexError, "index %lld is out of bounds for dimension %d with size %lld", (long long) i, w->dim,
                     (long long) n);
        return -1;
    }
    int64_t attrs[2] = {w->dim, i < 0 ? i + n : i};
    return view_call(w, TR_OP_select, attrs);
}

static int take_slice(walk *w, PyObject *key) {
    Py_ssize_t start, stop, step, n = (Py_ssize_t) w->x->meta->shape[w->dim];
    PySliceObject *s = (PySliceObject *) key;
    if (s->start == Py_None && s->stop == Py_None && s->step == Py_None) {
        w->dim++;
        return 0;
    }
    if (PySlice_Unpack(key, &start, &stop, &step) < 0)
        return -1;
    if (step <= 0) {
        PyErr_SetString(PyExc_ValueError, "step must be greater than zero");
        return -1;
    }
    PySlice_AdjustIndices(n, &start, &stop, step);
    if (stop < start)
        stop = start;
    int64_t attrs[4] = {w->dim, start, stop, step};
    w->dim++;
    return view_call(w, TR_OP_slice, attrs);
}

static int take_none(walk *w) {
    if (w->x->meta->ndim == TR_MAX_DIMS) {
        PyErr_Format(PyExc_RuntimeError, "at most %d dimensions are supported", TR_MAX_DIMS);
        return -1;
    }
    int64_t attrs[1] = {w->dim};
    return view_call(w, TR_OP_unsqueeze, attrs);
}

/* Takes t: the index of the next dimension. */
static int push_index(walk *w, tr_tensor *t) {
    while (w->n_index < w->dim)
        w->index[w->n_index++] = NULL;
    if (w->n_index == TR_MAX_DIMS) {
        tr_tensor_release(t);
        PyErr_Format(PyExc_IndexError, "too many indices");
        return -1;
    }
    w->index[w->n_index++] = t;
    w->dim++;
    return 0;
}

static int check_mask(walk *w, const tr_meta *mask) {
    const tr_meta *x = w->x->meta;
    for (int d = 0; d < mask->ndim; d++)
        if (mask->shape[d] != x->shape[w->dim + d]) {
            char a[128], b[128];
            PyErr_Format(PyExc_IndexError,
                         "The shape of the mask %s at index %d does not match the shape of the indexed tensor "
                         "%s at index %d",
                         tr_shape_print(mask, a, sizeof a), d, tr_shape_print(x, b, sizeof b), w->dim + d);
            return -1;
        }
    return 0;
}

/* A mask of several dimensions: one index tensor for each. Blocks. */
static int push_wide_mask(walk *w, tr_tensor *mask) {
    tr_tensor *at = NULL;
    if (tr__py_check(tr_nonzero(mask, &at)) < 0)
        return -1;
    int failed = 0;
    for (int d = 0; d < mask->meta->ndim && !failed; d++) {
        tr_input in = tr_in(at);
        int64_t attrs[2] = {1, d};
        tr_tensor *column = NULL;
        failed = tr__py_check(tr_apply(TR_OP_select, &in, 1, attrs, NULL, false, &column)) < 0 || push_index(w, column) < 0;
    }
    tr_tensor_release(at);
    return failed ? -1 : 0;
}

static int take_bool(walk *w, bool value) {
    uint8_t byte = value;
    int64_t one = 1;
    tr_tensor *t = NULL;
    const tr_meta *meta = tr_meta_get(TR_BOOL, 1, &one, NULL);
    if (take_none(w) < 0 || tr__py_check(meta ? tr_tensor_from_host(meta, &byte, &t) : TR_E_NOMEM) < 0)
        return -1;
    return push_index(w, t);
}

/* Borrows t. */
static int take_tensor(walk *w, tr_tensor *t) {
    tr_dtype dtype = t->meta->dtype;
    if (tr_dtype_is_float(dtype)) {
        PyErr_SetString(PyExc_IndexError, "tensors used as indices must be long, int, byte or bool tensors");
        return -1;
    }
    bool mask = dtype == TR_BOOL || dtype == TR_U8;
    if (t->meta->ndim == 0) {
        tr_number v;
        if (tr__py_check(tr_tensor_item(t, &v)) < 0)
            return -1;
        return mask ? take_bool(w, v.i != 0) : take_int(w, v.i);
    }
    tr_tensor *index = NULL;
    if (mask && check_mask(w, t->meta) < 0)
        return -1;
    if (tr__py_check(tr_to_dtype(t, mask ? TR_BOOL : TR_I64, &index)) < 0)
        return -1;
    if (!mask || t->meta->ndim == 1)
        return push_index(w, index);
    int r = push_wide_mask(w, index);
    tr_tensor_release(index);
    return r;
}

/* Lists, arrays: to a tensor. New reference; NULL with an exception. */
static tr_tensor *to_index_tensor(PyObject *key) {
    if (PyUnicode_Check(key) || PyFloat_Check(key)) {
        PyErr_Format(PyExc_IndexError,
                     "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid "
                     "indices (got %s)",
                     Py_TYPE(key)->tp_name);
        return NULL;
    }
    tr_tensor *t = tr__py_from_data(key, -1);
    if (t == NULL || t->meta->numel != 0 || !tr_dtype_is_float(t->meta->dtype))
        return t;
    tr_tensor *empty = NULL; /* [] */
    tr_status status = tr_to_dtype(t, TR_I64, &empty);
    tr_tensor_release(t);
    return status ? (tr__py_raise(status), NULL) : empty;
}

static bool is_int(PyObject *o) {
    return PyLong_CheckExact(o) ||
           (PyIndex_Check(o) && !PyBool_Check(o) && !tr__py_is_tensor(o) && strcmp(Py_TYPE(o)->tp_name, "numpy.ndarray") != 0);
}

/* How many dimensions a key takes; -1 for Ellipsis. */
static int takes(PyObject *key) {
    if (key == Py_None || PyBool_Check(key))
        return 0;
    if (key == Py_Ellipsis)
        return -1;
    if (tr__py_is_tensor(key)) {
        const tr_meta *m = tr__py_t(key)->meta;
        bool mask = m->dtype == TR_BOOL || m->dtype == TR_U8;
        return mask ? m->ndim : 1;
    }
    return 1;
}

static int take(walk *w, PyObject *key, int skipped) {
    if (key == Py_None) {
        int failed = take_none(w);
        w->dim++;
        return failed;
    }
    if (key == Py_Ellipsis) {
        w->dim += skipped;
        return 0;
    }
    if (PyBool_Check(key))
        return take_bool(w, key == Py_True);
    if (PySlice_Check(key))
        return take_slice(w, key);
    if (tr__py_is_tensor(key))
        return take_tensor(w, tr__py_t(key));
    int64_t i;
    return tr__py_int(key, &i) < 0 ? -1 : take_int(w, i);
}

/* Key items, with lists and arrays made into tensors. */
typedef struct keys {
    PyObject *item[MAX_KEYS]; /* owned */
    int n;
} keys;

static void keys_free(keys *k) {
    while (k->n)
        Py_DECREF(k->item[--k->n]);
}

static int keys_add(keys *k, PyObject *key) {
    if (k->n == MAX_KEYS) {
        PyErr_SetString(PyExc_IndexError, "too many indices");
        return -1;
    }
    if (key == Py_None || key == Py_Ellipsis || PyBool_Check(key) || PySlice_Check(key) || tr__py_is_tensor(key) ||
        is_int(key)) {
        k->item[k->n++] = Py_NewRef(key);
        return 0;
    }
    tr_tensor *t = to_index_tensor(key);
    PyObject *o = t ? tr__py_wrap(t) : NULL;
    if (o == NULL)
        return -1;
    k->item[k->n++] = o;
    return 0;
}

static int keys_read(keys *k, PyObject *key) {
    k->n = 0;
    if (!PyTuple_Check(key))
        return keys_add(k, key);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
        if (keys_add(k, PyTuple_GET_ITEM(key, i)) < 0)
            return -1;
    return 0;
}

static int walk_keys(walk *w, const keys *k, int ndim) {
    int taken = 0;
    for (int i = 0; i < k->n; i++) {
        int n = takes(k->item[i]);
        taken += n < 0 ? 0 : n;
    }
    if (taken > ndim) {
        PyErr_Format(PyExc_IndexError, "too many indices for tensor of dimension %d", ndim);
        return -1;
    }
    for (int i = 0; i < k->n; i++)
        if (take(w, k->item[i], ndim - taken) < 0)
            return -1;
    return 0;
}

static int walk_start(walk *w, PyObject *self, PyObject *key) {
    *w = (walk){.x = tr__py_t(self), .alias_needed = true};
    tr_tensor_retain(w->x);
    if (PyLong_CheckExact(key) || PySlice_Check(key)) {
        if (w->x->meta->ndim == 0) {
            PyErr_SetString(PyExc_IndexError,
                            PySlice_Check(key)
                                ? "slice() cannot be applied to a 0-dim tensor."
                                : "invalid index of a 0-dim tensor. Use `tensor.item()` in Python or `tensor.item<T>()` in C++ "
                                  "to convert a 0-dim tensor to a number");
            return -1;
        }
        return take(w, key, 0);
    }
    keys k;
    int r = keys_read(&k, key);
    if (r == 0)
        r = walk_keys(w, &k, w->x->meta->ndim);
    keys_free(&k);
    return r;
}

PyObject *tr__py_getitem(PyObject *self, PyObject *key) {
    walk w;
    tr_tensor *out = NULL;
    if (walk_start(&w, self, key) < 0)
        goto failed;
    if (w.n_index) {
        if (tr__py_check(tr_index_get(w.x, w.index, w.n_index, &out)) < 0)
            goto failed;
    } else if (w.alias_needed) {
        tr_input in = tr_in(w.x);
        if (tr__py_check(tr_apply(TR_OP_alias, &in, 1, NULL, NULL, false, &out)) < 0)
            goto failed;
    } else {
        out = w.x;
        w.x = NULL;
    }
    walk_free(&w);
    return tr__py_wrap(out);
failed:
    walk_free(&w);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ stores */

static int apply_discard(tr_op op, const tr_input *in, int n, const int64_t *attrs, bool in_place) {
    tr_tensor *out[TR_MAX_OUTPUTS] = {NULL};
    if (tr__py_check(tr_apply(op, in, n, attrs, NULL, in_place, out)) < 0)
        return -1;
    tr_tensor_release(out[0]);
    return 0;
}

/* Leading dimensions of 1 that the target lacks are dropped, as in PyTorch. New reference. */
static tr_tensor *fit(tr_tensor *value, int ndim) {
    const tr_meta *m = value->meta;
    int drop = 0;
    while (m->ndim - drop > ndim && m->shape[drop] == 1)
        drop++;
    tr_tensor *out = value;
    if (drop == 0) {
        tr_tensor_retain(value);
        return value;
    }
    tr_status status = tr_reshape(value, m->ndim - drop, m->shape + drop, &out);
    return status ? (tr__py_raise(status), NULL) : out;
}

static int store_view(tr_tensor *x, tr_input value) {
    tr_input in[2] = {tr_in(x), value};
    if (value.tensor == NULL)
        return apply_discard(TR_OP_fill_, in, 2, NULL, false);
    tr_tensor *v = fit(value.tensor, x->meta->ndim);
    if (v == NULL)
        return -1;
    in[1] = tr_in(v);
    int r = apply_discard(TR_OP_copy_, in, 2, NULL, false);
    tr_tensor_release(v);
    return r;
}

/* x[mask] = number or 0-dimensional tensor: needs no count, so nothing waits. */
static int store_masked(tr_tensor *x, tr_tensor *mask, tr_input value) {
    const tr_meta *m = mask->meta;
    int64_t shape[TR_MAX_DIMS];
    tr_tensor *wide = NULL;
    for (int d = 0; d < x->meta->ndim; d++)
        shape[d] = d < m->ndim ? m->shape[d] : 1;
    if (tr__py_check(tr_reshape(mask, x->meta->ndim, shape, &wide)) < 0)
        return -1;
    tr_input in[3] = {tr_in(x), tr_in(wide), value};
    int r = apply_discard(TR_OP_masked_fill, in, 3, NULL, true);
    tr_tensor_release(wide);
    return r;
}

static bool is_whole_mask(PyObject *self, PyObject *key, tr_input value) {
    if (!tr__py_is_tensor(key) || (value.tensor && value.tensor->meta->ndim != 0))
        return false;
    const tr_meta *m = tr__py_t(key)->meta;
    return (m->dtype == TR_BOOL || m->dtype == TR_U8) && m->ndim > 0 && m->ndim <= tr__py_t(self)->meta->ndim;
}

int tr__py_setitem(PyObject *self, PyObject *key, PyObject *value) {
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "Tensor does not support deleting items");
        return -1;
    }
    tr_input v;
    tr_tensor *made = NULL;
    int r = tr__py_operand(value, &v);
    if (r < 0)
        return -1;
    if (r == 0) {
        if (PyUnicode_Check(value) || value == Py_None) {
            PyErr_Format(PyExc_TypeError, "can't assign a %s to a torch.%sTensor", Py_TYPE(value)->tp_name,
                         tr_dtype_legacy(tr__py_t(self)->meta->dtype));
            return -1;
        }
        if ((made = tr__py_from_data(value, -1)) == NULL)
            return -1;
        v = tr_in(made);
    }
    if (is_whole_mask(self, key, v)) {
        walk w = {.x = tr__py_t(self)};
        r = check_mask(&w, tr__py_t(key)->meta) < 0 ? -1 : store_masked(tr__py_t(self), tr__py_t(key), v);
        tr_tensor_release(made);
        return r;
    }
    walk w;
    r = walk_start(&w, self, key);
    if (r == 0)
        r = w.n_index ? tr__py_check(tr_index_put(w.x, w.index, w.n_index, v, false)) : store_view(w.x, v);
    walk_free(&w);
    tr_tensor_release(made);
    return r;
}
