/* The module terra._C. */
#include <Python.h>

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "terra._C",
    .m_doc = "The native half of Terra.",
    .m_size = 0,
};

PyMODINIT_FUNC PyInit__C(void) {
    PyObject *module = PyModule_Create(&module_def);
    if (module == NULL)
        return NULL;
    if (PyModule_AddStringConstant(module, "__version__", TR_VERSION) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
