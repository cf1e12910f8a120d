/* py_error.c - the only place where a tr_status becomes a Python exception. */
#include "python/py.h"

static PyObject *class_of(tr_status status) {
    switch (status) {
        case TR_E_NOMEM:
            return PyExc_MemoryError;
        case TR_E_VALUE:
            return PyExc_ValueError;
        case TR_E_TYPE:
            return PyExc_TypeError;
        case TR_E_INDEX:
            return PyExc_IndexError;
        case TR_E_KEY:
            return PyExc_KeyError;
        case TR_E_ATTRIBUTE:
            return PyExc_AttributeError;
        case TR_E_NOTIMPL:
            return PyExc_NotImplementedError;
        case TR_E_IO:
            return PyExc_OSError;
        case TR_E_OVERFLOW:
            return PyExc_OverflowError;
        case TR_E_INTERRUPT:
            return PyExc_KeyboardInterrupt;
        case TR_E_TIMEOUT:
            return PyExc_TimeoutError;
        case TR_E_INTERNAL:
            return PyExc_SystemError;
        default:
            return PyExc_RuntimeError;
    }
}

PyObject *tr__py_raise(tr_status status) {
    if (status == TR_E_PYTHON && PyErr_Occurred())
        return NULL;
    const char *detail = tr_status_detail();
    PyErr_SetString(class_of(status), *detail ? detail : tr_status_message(status));
    return NULL;
}
