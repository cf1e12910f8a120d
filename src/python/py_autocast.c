/* py_autocast.c - this thread's autocast state, for terra.amp and for functions that are composed in Python; the precision of
 * float32 products, for terra.backends. */
#include "python/py.h"

static PyObject *enabled(PyObject *module, PyObject *unused) {
    return PyBool_FromLong(tr_autocast_state()->enabled);
}

static PyObject *get(PyObject *module, PyObject *unused) {
    const tr_autocast *a = tr_autocast_state();
    return Py_BuildValue("(NON)", PyBool_FromLong(a->enabled), tr__py.dtypes[a->lower], PyBool_FromLong(a->cache));
}

static PyObject *set(PyObject *module, PyObject *args) {
    int on, cache;
    PyObject *dtype;
    tr_dtype lower;
    if (!PyArg_ParseTuple(args, "pOp", &on, &dtype, &cache) || tr__py_dtype_arg("set_autocast_dtype", dtype, &lower) < 0)
        return NULL;
    if (lower != TR_BF16 && on)
        return PyErr_Format(PyExc_NotImplementedError, "autocast to %s is not in Terra's subset yet; to bfloat16 it is",
                            tr_dtype_name(lower));
    tr_autocast *a = tr_autocast_state();
    a->enabled = on;
    a->lower = lower;
    a->cache = cache;
    Py_RETURN_NONE;
}

static PyObject *nest(PyObject *module, PyObject *by) {
    long n = PyLong_AsLong(by);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(tr_autocast_state()->nesting += (int) n);
}

static PyObject *clear(PyObject *module, PyObject *unused) {
    tr_autocast_clear();
    Py_RETURN_NONE;
}

static PyObject *products_lower(PyObject *module, PyObject *on) {
    int truth = PyObject_IsTrue(on);
    if (truth < 0)
        return NULL;
    tr_set_products_lower(truth);
    Py_RETURN_NONE;
}

static PyObject *operand(PyObject *o, tr_autocast_policy policy) {
    if (!tr__py_is_tensor(o) || !tr_autocast_state()->enabled)
        return Py_NewRef(o);
    tr_tensor *out, *t = tr__py_t(o);
    tr_status status = tr_autocast_operand(policy, t, &out);
    if (status != TR_OK)
        return tr__py_raise(status);
    if (out != t)
        return tr__py_wrap(out);
    tr_tensor_release(out);
    return Py_NewRef(o);
}
static PyObject *lower(PyObject *module, PyObject *o) {
    return operand(o, TR_AUTOCAST_LOWER);
}
static PyObject *in_float32(PyObject *module, PyObject *o) {
    return operand(o, TR_AUTOCAST_FLOAT32);
}

static PyMethodDef methods[] = {
    {"_autocast_enabled", enabled, METH_NOARGS, "Whether this thread is in an enabled region."},
    {"_autocast_get", get, METH_NOARGS, "(enabled, dtype, cache)"},
    {"_autocast_set", set, METH_VARARGS, "_autocast_set(enabled, dtype, cache)"},
    {"_autocast_nest", nest, METH_O, "Changes the depth of regions; returns it."},
    {"clear_autocast_cache", clear, METH_NOARGS, "Forgets the casts that are kept."},
    {"_products_lower", products_lower, METH_O, "Whether large float32 products may be computed in bfloat16."},
    {"_autocast_lower", lower, METH_O, "What a product is given of this tensor; anything else as it is."},
    {"_autocast_float32", in_float32, METH_O, "What an op that wants float32 is given of this tensor; anything else as it is."},
    {NULL},
};

int tr__py_autocast_init(PyObject *module) {
    return PyModule_AddFunctions(module, methods);
}
