/* py_interop.c - data in and out: torch.tensor, from_numpy, numpy(), DLPack, the buffer protocol.
 *
 * What comes in by sharing is a storage over somebody else's memory; what goes out by sharing is an export: an object that
 * holds the storage and offers its bytes as a buffer, until it dies. Nothing here needs NumPy's headers: arrays are buffers. */
#include "python/py.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ formats */

int tr__py_format_dtype(const char *format, Py_ssize_t itemsize) {
    if (format == NULL)
        return TR_U8;
    if (*format == '=' || *format == '@' || *format == '<')
        format++;
    if (format[0] == 0 || format[1] != 0)
        return -1;
    switch (*format) {
        case '?':
            return TR_BOOL;
        case 'B':
            return TR_U8;
        case 'f':
            return TR_F32;
        case 'd':
            return TR_F64;
        case 'i':
        case 'l':
        case 'q':
            return itemsize == 4 ? TR_I32 : itemsize == 8 ? TR_I64 : -1;
        default:
            return -1;
    }
}

static const char *format_of(tr_dtype dtype) {
    static const char *const formats[] = {
        [TR_BOOL] = "?", [TR_U8] = "B", [TR_I32] = "i", [TR_I64] = "l", [TR_BF16] = NULL, [TR_F32] = "f", [TR_F64] = "d"};
    return formats[dtype];
}

static uint16_t bf16_of(double d) {
    float f = (float) d;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (f != f)
        return 0x7fc0;
    return (uint16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static void put(void *data, tr_dtype dtype, int64_t at, tr_input v) {
    bool is_double = v.meta->dtype == TR_F64;
    double d = is_double ? v.number.d : (double) v.number.i;
    int64_t i = is_double ? (int64_t) v.number.d : v.number.i;
    switch (dtype) {
        case TR_BOOL:
            ((uint8_t *) data)[at] = is_double ? d != 0 : i != 0;
            break;
        case TR_U8:
            ((uint8_t *) data)[at] = (uint8_t) i;
            break;
        case TR_I32:
            ((int32_t *) data)[at] = (int32_t) i;
            break;
        case TR_I64:
            ((int64_t *) data)[at] = i;
            break;
        case TR_BF16:
            ((uint16_t *) data)[at] = bf16_of(d);
            break;
        case TR_F32:
            ((float *) data)[at] = (float) d;
            break;
        default:
            ((double *) data)[at] = d;
            break;
    }
}

static PyObject *get(const void *data, tr_dtype dtype, int64_t at) {
    switch (dtype) {
        case TR_BOOL:
            return PyBool_FromLong(((const uint8_t *) data)[at]);
        case TR_U8:
            return PyLong_FromLong(((const uint8_t *) data)[at]);
        case TR_I32:
            return PyLong_FromLong(((const int32_t *) data)[at]);
        case TR_I64:
            return PyLong_FromLongLong(((const int64_t *) data)[at]);
        case TR_BF16: {
            uint32_t u = (uint32_t) ((const uint16_t *) data)[at] << 16;
            float f;
            memcpy(&f, &u, sizeof f);
            return PyFloat_FromDouble(f);
        }
        case TR_F32:
            return PyFloat_FromDouble(((const float *) data)[at]);
        default:
            return PyFloat_FromDouble(((const double *) data)[at]);
    }
}

/* ------------------------------------------------------------------------------------------------ torch.tensor */

static bool is_sequence(PyObject *o) {
    return PyList_Check(o) || PyTuple_Check(o) ||
           (PySequence_Check(o) && !PyUnicode_Check(o) && !PyBytes_Check(o) && !tr__py_is_tensor(o) && PyObject_Size(o) >= 0);
}

static bool is_array(PyObject *o) {
    return PyObject_CheckBuffer(o) && strcmp(Py_TYPE(o)->tp_name, "numpy.ndarray") == 0;
}

/* A leaf of nested data as a number: Python's, NumPy's, or a tensor of one element. */
static int leaf(PyObject *o, tr_input *v) {
    if (tr__py_is_tensor(o)) {
        tr_tensor *t = tr__py_t(o);
        tr_number n;
        if (t->meta->numel != 1) {
            PyErr_Format(PyExc_ValueError, "only one element tensors can be converted to Python scalars");
            return -1;
        }
        if (tr__py_check(tr_tensor_item(t, &n)) < 0)
            return -1;
        *v = tr_dtype_is_float(t->meta->dtype) ? tr_in_double(n.d)
             : t->meta->dtype == TR_BOOL       ? tr_in_bool(n.i)
                                               : tr_in_int(n.i);
        return 0;
    }
    int r = tr__py_number(o, v);
    if (r == 0 && is_array(o)) {
        PyObject *scalar = PyObject_CallMethod(o, "item", NULL);
        r = scalar ? tr__py_number(scalar, v) : -1;
        Py_XDECREF(scalar);
    }
    if (r == 0) {
        if (PyUnicode_Check(o))
            PyErr_Format(PyExc_TypeError, "new(): invalid data type '%s'", Py_TYPE(o)->tp_name);
        else
            PyErr_Format(PyExc_RuntimeError, "Could not infer dtype of %s", Py_TYPE(o)->tp_name);
    }
    return r > 0 ? 0 : -1;
}

/* The dtype of a leaf, in the order of promotion: bool, int64, the default float; float64 only from a tensor or array. */
static int leaf_dtype(PyObject *o) {
    if (tr__py_is_tensor(o))
        return tr__py_t(o)->meta->dtype;
    const char *name = Py_TYPE(o)->tp_name;
    if (strcmp(name, "numpy.float64") == 0)
        return TR_F64;
    if (strcmp(name, "numpy.float32") == 0)
        return TR_F32;
    if (strcmp(name, "numpy.int32") == 0)
        return TR_I32;
    if (strcmp(name, "numpy.uint8") == 0)
        return TR_U8;
    tr_input v;
    if (leaf(o, &v) < 0)
        return -1;
    return v.meta->dtype == TR_F64 ? (int) tr__py.default_dtype : v.meta->dtype;
}

typedef struct nest {
    int ndim;
    int64_t shape[TR_MAX_DIMS];
    int dtype; /* found so far; -1: nothing */
    bool find_dtype;
    void *data;
    int64_t at;
} nest;

static int nest_shape(nest *n, PyObject *o) {
    PyObject *held = Py_NewRef(o);
    while (!tr__py_is_tensor(held) || tr__py_t(held)->meta->ndim) {
        bool tensor = tr__py_is_tensor(held);
        if (!tensor && (!is_sequence(held) || (is_array(held) && PyObject_Size(held) < 0)))
            break;
        if (n->ndim == TR_MAX_DIMS) {
            Py_DECREF(held);
            PyErr_Format(PyExc_ValueError, "too many dimensions (at most %d)", TR_MAX_DIMS);
            return -1;
        }
        Py_ssize_t length = PyObject_Size(held);
        if (length < 0)
            break;
        n->shape[n->ndim++] = length;
        if (length == 0)
            break;
        PyObject *first = PySequence_GetItem(held, 0);
        if (first == NULL) {
            Py_DECREF(held);
            return -1;
        }
        Py_SETREF(held, first);
    }
    PyErr_Clear(); /* of PyObject_Size on what has no length */
    Py_DECREF(held);
    return 0;
}

static int nest_visit(nest *n, PyObject *o, int depth);

static int nest_row(nest *n, PyObject *o, int depth) {
    PyObject *row = PySequence_Fast(o, "a sequence is needed");
    if (row == NULL)
        return -1;
    Py_ssize_t length = PySequence_Fast_GET_SIZE(row);
    int r = 0;
    if (length != n->shape[depth]) {
        PyErr_Format(PyExc_ValueError, "expected sequence of length %lld at dim %d (got %zd)", (long long) n->shape[depth],
                     depth, length);
        r = -1;
    }
    for (Py_ssize_t i = 0; r == 0 && i < length; i++)
        r = nest_visit(n, PySequence_Fast_GET_ITEM(row, i), depth + 1);
    Py_DECREF(row);
    return r;
}

/* First with data NULL: finds the dtype and checks lengths; then stores. */
static int nest_visit(nest *n, PyObject *o, int depth) {
    if (depth < n->ndim) {
        if (!tr__py_is_tensor(o) && !is_sequence(o)) {
            PyErr_Clear();
            PyErr_Format(PyExc_TypeError, "expected a sequence at dim %d, got %s", depth, Py_TYPE(o)->tp_name);
            return -1;
        }
        return nest_row(n, o, depth);
    }
    if (n->data == NULL) {
        if (PyFloat_CheckExact(o)) {
            if (n->dtype < (int) tr__py.default_dtype)
                n->dtype = tr__py.default_dtype;
            return 0;
        }
        int dtype = leaf_dtype(o);
        if (dtype > n->dtype)
            n->dtype = dtype;
        return dtype < 0 ? -1 : 0;
    }
    tr_input v;
    if (leaf(o, &v) < 0)
        return -1;
    put(n->data, (tr_dtype) n->dtype, n->at++, v);
    return 0;
}

static tr_tensor *from_host(tr_dtype dtype, int ndim, const int64_t *shape, const void *data) {
    const tr_meta *meta = tr_meta_get(dtype, ndim, shape, NULL);
    tr_tensor *t = NULL;
    tr_status status = meta ? tr_tensor_from_host(meta, data, &t) : TR_E_NOMEM;
    return status ? (tr__py_raise(status), NULL) : t;
}

static tr_tensor *from_nest(PyObject *data, int dtype) {
    nest n = {.dtype = -1};
    if (nest_shape(&n, data) < 0)
        return NULL;
    if (nest_visit(&n, data, 0) < 0) /* checks, and finds the dtype */
        return NULL;
    n.dtype = dtype >= 0 ? dtype : n.dtype >= 0 ? n.dtype : (int) tr__py.default_dtype;
    int64_t numel = 1;
    for (int d = 0; d < n.ndim; d++)
        numel *= n.shape[d];
    double small[32];
    size_t bytes = (size_t) numel * tr_dtype_size((tr_dtype) n.dtype);
    n.data = bytes <= sizeof small ? (void *) small : PyMem_Malloc(bytes);
    tr_tensor *t = NULL;
    if (n.data == NULL)
        PyErr_NoMemory();
    else if (nest_visit(&n, data, 0) == 0)
        t = from_host((tr_dtype) n.dtype, n.ndim, n.shape, n.data);
    if (n.data != small)
        PyMem_Free(n.data);
    return t;
}

/* A copy of an array of one of our dtypes. */
static tr_tensor *from_array(PyObject *array) {
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO) < 0)
        return NULL;
    int dtype = tr__py_format_dtype(view.format, view.itemsize);
    tr_tensor *t = NULL;
    void *copy = PyMem_Malloc((size_t) view.len + 1);
    if (dtype < 0 || view.ndim > TR_MAX_DIMS)
        PyErr_Format(PyExc_TypeError,
                     "can't convert np.ndarray with elements '%s'. The only supported types are: float64, "
                     "float32, int64, int32, uint8, and bool.",
                     view.format ? view.format : "");
    else if (copy == NULL)
        PyErr_NoMemory();
    else if (PyBuffer_ToContiguous(copy, &view, view.len, 'C') == 0) {
        int64_t shape[TR_MAX_DIMS];
        for (int d = 0; d < view.ndim; d++)
            shape[d] = view.shape[d];
        t = from_host((tr_dtype) dtype, view.ndim, shape, copy);
    }
    PyMem_Free(copy);
    PyBuffer_Release(&view);
    return t;
}

static tr_tensor *cast_to(tr_tensor *t, int dtype) {
    if (t == NULL || dtype < 0 || t->meta->dtype == dtype)
        return t;
    tr_tensor *out = NULL;
    tr_status status = tr_to_dtype(t, (tr_dtype) dtype, &out);
    tr_tensor_release(t);
    return status ? (tr__py_raise(status), NULL) : out;
}

/* An array whose elements are none of our dtypes, as one that has. New reference. */
static PyObject *supported_array(PyObject *array) {
    PyObject *kind = NULL, *dtype = PyObject_GetAttrString(array, "dtype");
    PyObject *out = NULL;
    if (dtype && (kind = PyObject_GetAttrString(dtype, "kind"))) {
        const char *k = PyUnicode_AsUTF8(kind);
        const char *to = *k == 'f' ? "float32" : *k == 'i' || *k == 'u' ? "int64" : NULL;
        if (to)
            out = PyObject_CallMethod(array, "astype", "s", to);
        else
            PyErr_Format(PyExc_TypeError,
                         "can't convert np.ndarray of type %S. The only supported types are: float64, float32, "
                         "int64, int32, uint8, and bool.",
                         dtype);
    }
    Py_XDECREF(kind);
    Py_XDECREF(dtype);
    return out;
}

static bool array_supported(PyObject *array) {
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO) < 0) {
        PyErr_Clear();
        return false;
    }
    bool ok = tr__py_format_dtype(view.format, view.itemsize) >= 0;
    PyBuffer_Release(&view);
    return ok;
}

tr_tensor *tr__py_from_data(PyObject *data, int dtype) {
    if (tr__py_is_tensor(data)) {
        tr_tensor *t = tr__py_t(data), *out = NULL;
        tr_input in = tr_in(t);
        bool was = tr_set_grad_enabled(false);
        tr_status status = dtype < 0 || t->meta->dtype == dtype ? tr_apply(TR_OP_clone, &in, 1, NULL, NULL, false, &out)
                                                                : tr_to_dtype(t, (tr_dtype) dtype, &out);
        tr_set_grad_enabled(was);
        return status ? (tr__py_raise(status), NULL) : out;
    }
    if (is_array(data)) {
        if (array_supported(data))
            return cast_to(from_array(data), dtype);
        PyObject *other = supported_array(data);
        tr_tensor *t = other ? cast_to(from_array(other), dtype) : NULL;
        Py_XDECREF(other);
        return t;
    }
    if (!is_sequence(data)) {
        PyErr_Clear();
        if (PyObject_HasAttrString(data, "__array__") && !PyNumber_Check(data)) {
            PyObject *array = PyObject_CallMethod(data, "__array__", NULL);
            tr_tensor *t = array ? tr__py_from_data(array, dtype) : NULL;
            Py_XDECREF(array);
            return t;
        }
    }
    return from_nest(data, dtype);
}

static PyObject *tensor_from_data(PyObject *module, PyObject *args) {
    PyObject *data, *dtype = Py_None;
    tr_dtype to = TR_F32;
    if (!PyArg_ParseTuple(args, "O|O:_from_data", &data, &dtype) ||
        (dtype != Py_None && tr__py_dtype_arg("tensor", dtype, &to) < 0))
        return NULL;
    tr_tensor *t = tr__py_from_data(data, dtype == Py_None ? -1 : (int) to);
    return t ? tr__py_wrap(t) : NULL;
}

/* _from_bytes(buffer, dtype, size): a copy of row-major elements. */
static PyObject *from_bytes(PyObject *module, PyObject *args) {
    Py_buffer view;
    PyObject *dtype, *size, *out = NULL;
    int64_t shape[TR_MAX_DIMS], numel = 1;
    int ndim;
    tr_dtype to;
    if (!PyArg_ParseTuple(args, "y*OO:_from_bytes", &view, &dtype, &size))
        return NULL;
    if (tr__py_dtype_arg("_from_bytes", dtype, &to) == 0 && tr__py_sizes("_from_bytes", &size, 1, shape, &ndim) == 0) {
        bool bad = false;
        for (int d = 0; d < ndim; d++)
            bad |= shape[d] < 0 || __builtin_mul_overflow(numel, shape[d], &numel);
        if (bad || numel < 0 || (size_t) view.len / tr_dtype_size(to) < (size_t) numel)
            PyErr_SetString(PyExc_ValueError, "the buffer is smaller than the tensor");
        else {
            tr_tensor *t = from_host(to, ndim, shape, view.buf);
            out = t ? tr__py_wrap(t) : NULL;
        }
    }
    PyBuffer_Release(&view);
    return out;
}

/* ------------------------------------------------------------------------------------------------ shared memory, in */

static void release_buffer(void *owner) {
    PyBuffer_Release(owner);
    PyMem_Free(owner);
}

static PyObject *share_buffer(Py_buffer *view, int dtype) {
    int64_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS], reach = 1;
    tr_tensor *t = NULL;
    for (int d = 0; d < view->ndim; d++) {
        shape[d] = view->shape[d];
        if (view->strides[d] < 0)
            return PyErr_Format(PyExc_ValueError,
                                "At least one stride in the given numpy array is negative, and tensors with "
                                "negative strides are not currently supported. (You can probably work around this by making a "
                                "copy of your array  with array.copy().) ");
        if (view->strides[d] % view->itemsize)
            return PyErr_Format(PyExc_ValueError, "given numpy array strides not a multiple of the element byte size. Copy the "
                                                  "numpy array to reallocate the memory.");
        strides[d] = view->strides[d] / view->itemsize;
        reach = shape[d] == 0 ? 0 : reach ? reach + (shape[d] - 1) * strides[d] : 0;
    }
    const tr_meta *meta = tr_meta_get((tr_dtype) dtype, view->ndim, shape, strides);
    if (meta == NULL)
        return tr__py_raise(TR_E_NOMEM);
    tr_status status = tr_tensor_from_shared(meta, view->buf, (size_t) (reach * view->itemsize), view, release_buffer, &t);
    return status ? tr__py_raise(status) : tr__py_wrap(t);
}

PyObject *tr__py_from_numpy(PyObject *module, PyObject *array) {
    if (!is_array(array))
        return PyErr_Format(PyExc_TypeError, "expected np.ndarray (got %s)", Py_TYPE(array)->tp_name);
    Py_buffer *view = PyMem_Calloc(1, sizeof *view);
    if (view == NULL)
        return PyErr_NoMemory();
    int dtype = -1;
    if (PyObject_GetBuffer(array, view, PyBUF_FULL_RO) == 0) {
        dtype = tr__py_format_dtype(view->format, view->itemsize);
        if (dtype < 0)
            PyBuffer_Release(view);
    }
    if (dtype < 0) {
        PyMem_Free(view);
        PyErr_Clear();
        PyObject *type = PyObject_GetAttrString(array, "dtype");
        PyErr_Format(PyExc_TypeError,
                     "can't convert np.ndarray of type numpy.%S. The only supported types are: float64, float32, "
                     "int64, int32, uint8, and bool.",
                     type ? type : Py_None);
        Py_XDECREF(type);
        return NULL;
    }
    PyObject *t = view->ndim > TR_MAX_DIMS
                      ? PyErr_Format(PyExc_RuntimeError, "at most %d dimensions are supported", TR_MAX_DIMS)
                      : share_buffer(view, dtype);
    if (t == NULL)
        release_buffer(view);
    return t;
}

/* ------------------------------------------------------------------------------------------------ shared memory, out */

/* What an array or capsule made by numpy() keeps: the storage, exported. */
typedef struct py_export {
    PyObject_HEAD tr_storage *storage;
    void *data;
    const tr_meta *meta;
    Py_ssize_t shape[TR_MAX_DIMS], strides[TR_MAX_DIMS];
} py_export;

static void export_dealloc(PyObject *o) {
    py_export *e = (py_export *) o;
    PyTypeObject *type = Py_TYPE(o);
    if (e->storage)
        tr_storage_unexport(e->storage);
    type->tp_free(o);
    Py_DECREF(type);
}

static int export_buffer(PyObject *o, Py_buffer *view, int flags) {
    py_export *e = (py_export *) o;
    *view = (Py_buffer){
        .buf = e->data,
        .obj = Py_NewRef(o),
        .len = (Py_ssize_t) (e->meta->numel * (int64_t) tr_dtype_size(e->meta->dtype)),
        .itemsize = (Py_ssize_t) tr_dtype_size(e->meta->dtype),
        .readonly = 0,
        .ndim = e->meta->ndim,
        .format = (char *) format_of(e->meta->dtype),
        .shape = e->shape,
        .strides = e->strides,
    };
    return 0;
}

static PyObject *export_new(tr_tensor *t) {
    void *data;
    if (tr__py_check(tr_tensor_export(t, &data)) < 0)
        return NULL;
    tr_storage_retain(t->storage); /* with the export: both go in export_dealloc */
    py_export *e = (py_export *) tr__py.export_type->tp_alloc(tr__py.export_type, 0);
    if (e == NULL) {
        tr_storage_unexport(t->storage);
        return NULL;
    }
    e->storage = t->storage;
    static char nothing[16];
    e->data = data ? data : nothing;
    e->meta = t->meta;
    for (int d = 0; d < t->meta->ndim; d++) {
        e->shape[d] = (Py_ssize_t) t->meta->shape[d];
        e->strides[d] = (Py_ssize_t) (t->meta->strides[d] * (int64_t) tr_dtype_size(t->meta->dtype));
    }
    return (PyObject *) e;
}

PyObject *tr__py_numpy(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    tr_tensor *t = tr__py_t(self);
    bool force = n > 0 && args[0] == Py_True;
    if (kwnames && PyTuple_GET_SIZE(kwnames))
        force = PyObject_IsTrue(args[n]) > 0;
    if ((t->requires_grad || t->grad_fn) && !force)
        return PyErr_Format(PyExc_RuntimeError,
                            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.");
    if (format_of(t->meta->dtype) == NULL)
        return PyErr_Format(PyExc_TypeError, "Got unsupported ScalarType BFloat16");
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *e = numpy ? export_new(t) : NULL;
    PyObject *array = e ? PyObject_CallMethod(numpy, "asarray", "O", e) : NULL;
    Py_XDECREF(e);
    Py_XDECREF(numpy);
    return array;
}

static PyObject *list_of(const tr_meta *m, const char *data, int dim, int64_t *at) {
    if (dim == m->ndim)
        return get(data, m->dtype, (*at)++);
    PyObject *list = PyList_New((Py_ssize_t) m->shape[dim]);
    for (Py_ssize_t i = 0; list && i < m->shape[dim]; i++) {
        PyObject *item = list_of(m, data, dim + 1, at);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static void *read_all(tr_tensor *t) {
    void *data = PyMem_Malloc((size_t) t->meta->numel * tr_dtype_size(t->meta->dtype) + 1);
    if (data == NULL)
        return PyErr_NoMemory();
    if (t->meta->numel && tr__py_check(tr_tensor_read(t, data)) < 0) {
        PyMem_Free(data);
        return NULL;
    }
    return data;
}

PyObject *tr__py_tolist(PyObject *self, PyObject *unused) {
    tr_tensor *t = tr__py_t(self);
    void *data = read_all(t);
    if (data == NULL)
        return NULL;
    int64_t at = 0;
    PyObject *list = list_of(t->meta, data, 0, &at);
    PyMem_Free(data);
    return list;
}

/* _read_bytes(tensor): its elements, row-major. */
static PyObject *read_bytes(PyObject *module, PyObject *o) {
    if (!tr__py_is_tensor(o))
        return PyErr_Format(PyExc_TypeError, "a Tensor is needed");
    tr_tensor *t = tr__py_t(o);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t) (t->meta->numel * (int64_t) tr_dtype_size(t->meta->dtype)));
    if (bytes == NULL || t->meta->numel == 0)
        return bytes;
    if (tr__py_check(tr_tensor_read(t, PyBytes_AS_STRING(bytes))) < 0)
        Py_CLEAR(bytes);
    return bytes;
}

/* ------------------------------------------------------------------------------------------------ DLPack */

typedef struct dl_tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_managed {
    dl_tensor tensor;
    void *manager;
    void (*deleter)(struct dl_managed *self);
} dl_managed;

enum { DL_CPU = 1, DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_BOOL = 6 };

static const struct {
    uint8_t code, bits;
} dl_types[] = {[TR_BOOL] = {DL_BOOL, 8},    [TR_U8] = {DL_UINT, 8},    [TR_I32] = {DL_INT, 32},  [TR_I64] = {DL_INT, 64},
                [TR_BF16] = {DL_BFLOAT, 16}, [TR_F32] = {DL_FLOAT, 32}, [TR_F64] = {DL_FLOAT, 64}};

static void dl_delete(dl_managed *m) {
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_XDECREF((PyObject *) m->manager);
    PyMem_Free(m);
    PyGILState_Release(gil);
}

static void capsule_delete(PyObject *capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor"))
        return; /* consumed */
    dl_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
    if (m && m->deleter)
        m->deleter(m);
}

PyObject *tr__py_dlpack(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    tr_tensor *t = tr__py_t(self);
    if (t->requires_grad || t->grad_fn)
        return PyErr_Format(PyExc_BufferError, "Can't export tensors that require gradient, use tensor.detach()");
    dl_managed *m = PyMem_Calloc(1, sizeof *m + 2 * TR_MAX_DIMS * sizeof(int64_t));
    PyObject *e = m ? export_new(t) : PyErr_NoMemory();
    if (e == NULL) {
        PyMem_Free(m);
        return NULL;
    }
    int64_t *shape = (int64_t *) (m + 1);
    memcpy(shape, t->meta->shape, TR_MAX_DIMS * sizeof *shape);
    memcpy(shape + TR_MAX_DIMS, t->meta->strides, TR_MAX_DIMS * sizeof *shape);
    m->tensor = (dl_tensor){.data = ((py_export *) e)->data,
                            .device = {DL_CPU, 0},
                            .ndim = t->meta->ndim,
                            .dtype = {dl_types[t->meta->dtype].code, dl_types[t->meta->dtype].bits, 1},
                            .shape = shape,
                            .strides = shape + TR_MAX_DIMS};
    m->manager = e;
    m->deleter = dl_delete;
    PyObject *capsule = PyCapsule_New(m, "dltensor", capsule_delete);
    if (capsule == NULL)
        dl_delete(m);
    return capsule;
}

static void dl_release(void *owner) {
    dl_managed *m = owner;
    if (m->deleter)
        m->deleter(m);
}

static PyObject *from_capsule(PyObject *module, PyObject *capsule) {
    dl_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
    if (m == NULL)
        return NULL;
    dl_tensor *d = &m->tensor;
    int dtype = -1;
    for (int i = 0; i < TR_DTYPE_COUNT; i++)
        if (dl_types[i].code == d->dtype.code && dl_types[i].bits == d->dtype.bits && d->dtype.lanes == 1)
            dtype = i;
    if (d->device.type != DL_CPU || dtype < 0 || d->ndim > TR_MAX_DIMS || d->ndim < 0)
        return PyErr_Format(PyExc_BufferError,
                            "from_dlpack: only tensors on the CPU, of Terra's dtypes and at most %d dimensions", TR_MAX_DIMS);
    int64_t reach = 1;
    for (int i = 0; i < d->ndim; i++) {
        if (d->strides && d->strides[i] < 0)
            return PyErr_Format(PyExc_BufferError, "from_dlpack: negative strides are not supported");
        if (d->strides)
            reach = d->shape[i] == 0 ? 0 : reach ? reach + (d->shape[i] - 1) * d->strides[i] : 0;
        else
            reach *= d->shape[i];
    }
    const tr_meta *meta = tr_meta_get((tr_dtype) dtype, d->ndim, d->shape, d->strides);
    tr_tensor *t = NULL;
    tr_status status = meta ? tr_tensor_from_shared(meta, (char *) d->data + d->byte_offset,
                                                    (size_t) reach * tr_dtype_size((tr_dtype) dtype), m, dl_release, &t)
                            : TR_E_NOMEM;
    if (status)
        return tr__py_raise(status);
    PyCapsule_SetName(capsule, "used_dltensor");
    return tr__py_wrap(t);
}

static PyType_Slot export_slots[] = {
    {Py_tp_dealloc, export_dealloc},
    {Py_bf_getbuffer, export_buffer},
    {0, NULL},
};
static PyType_Spec export_spec = {
    .name = "terra._C._Export",
    .basicsize = sizeof(py_export),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = export_slots,
};

static PyMethodDef methods[] = {
    {"_from_data", tensor_from_data, METH_VARARGS, "_from_data(data, dtype=None) -> Tensor: a copy."},
    {"_from_bytes", from_bytes, METH_VARARGS, "_from_bytes(buffer, dtype, size) -> Tensor: a copy."},
    {"_read_bytes", read_bytes, METH_O, "_read_bytes(tensor) -> bytes."},
    {"from_numpy", tr__py_from_numpy, METH_O, "from_numpy(ndarray) -> Tensor that shares its memory."},
    {"_from_dlpack", from_capsule, METH_O, "_from_dlpack(capsule) -> Tensor that shares its memory."},
    {NULL},
};

int tr__py_interop_init(PyObject *module) {
    tr__py.export_type = (PyTypeObject *) PyType_FromSpec(&export_spec);
    return tr__py.export_type ? PyModule_AddFunctions(module, methods) : -1;
}
