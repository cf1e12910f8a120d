/* py_test.c - what Terra's own tests need to reach corners: a hook after each op, stopping the executor, failing
 * allocations. Not part of the API. */
#include "python/py.h"

#include "terra/alloc.h"

static PyObject *hook;

static tr_status call_hook(void *arg, tr_tensor *result) {
    PyObject *t = tr__py_wrap_borrowed(result);
    PyObject *answer = t ? PyObject_CallOneArg(hook, t) : NULL;
    Py_XDECREF(t);
    Py_XDECREF(answer);
    return answer ? TR_OK : TR_E_PYTHON;
}

static PyObject *set_op_hook(PyObject *module, PyObject *fn) {
    tr_set_op_hook(NULL, NULL);
    Py_CLEAR(hook);
    if (fn != Py_None) {
        hook = Py_NewRef(fn);
        tr_set_op_hook(call_hook, NULL);
    }
    Py_RETURN_NONE;
}

static PyObject *hold_executor(PyObject *module, PyObject *on) {
    tr_hold_executor(PyObject_IsTrue(on) > 0);
    Py_RETURN_NONE;
}

static PyObject *wait_until_idle(PyObject *module, PyObject *unused) {
    tr_wait_until_idle();
    Py_RETURN_NONE;
}

static PyObject *fail_alloc(PyObject *module, PyObject *n) {
    long long count = PyLong_AsLongLong(n);
    if (count == -1 && PyErr_Occurred())
        return NULL;
    tr_fail_alloc_set(count);
    Py_RETURN_NONE;
}

static PyObject *fail_alloc_left(PyObject *module, PyObject *unused) {
    return PyLong_FromLongLong(tr_fail_alloc_left());
}

static PyMethodDef methods[] = {
    {"_set_op_hook", set_op_hook, METH_O, NULL},
    {"_hold_executor", hold_executor, METH_O, NULL},
    {"_wait_until_idle", wait_until_idle, METH_NOARGS, NULL},
    {"_fail_alloc", fail_alloc, METH_O, "The nth allocation from now fails; 0: none."},
    {"_fail_alloc_left", fail_alloc_left, METH_NOARGS, NULL},
    {NULL},
};

int tr__py_test_init(PyObject *module) {
    return PyModule_AddFunctions(module, methods);
}
