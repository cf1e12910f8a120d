/* py_site.c - where the program called: the innermost frame that is not Terra's own.
 *
 * A code object is ours when its file lies in the package's folder. What a (code, instruction) means is remembered in a
 * direct-mapped cache; entries hold their code object, so an address can't come to mean another. */
#include "python/py.h"

#include <string.h>

enum { CACHE = 4096, OWN = 512 };

typedef struct entry {
    PyCodeObject *code;
    int lasti;
    uint32_t site;
} entry;

static entry cache[CACHE];
static struct {
    PyCodeObject *code;
    bool own;
} own_cache[OWN];
static char *package; /* "/…/terra/", NULL before set */

static uint32_t hash_of(const void *p, int lasti) {
    return (uint32_t) (((uintptr_t) p >> 4) * 2654435761u) ^ (uint32_t) lasti * 40503u;
}

static bool is_own(PyCodeObject *code) {
    uint32_t at = hash_of(code, 0) % OWN;
    if (own_cache[at].code == code)
        return own_cache[at].own;
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    if (file == NULL)
        PyErr_Clear();
    Py_INCREF(code);
    Py_XDECREF(own_cache[at].code);
    own_cache[at].code = code;
    own_cache[at].own = package && file && (strncmp(file, package, strlen(package)) == 0 || file[0] == '<');
    return own_cache[at].own;
}

static uint32_t intern(PyCodeObject *code, PyFrameObject *frame) {
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    const char *function = PyUnicode_AsUTF8(code->co_name);
    if (file == NULL || function == NULL) {
        PyErr_Clear();
        return 0;
    }
    return tr_site_intern(file, PyFrame_GetLineNumber(frame), function);
}

static uint32_t site_of(PyFrameObject *frame, PyCodeObject *code) {
    int lasti = PyFrame_GetLasti(frame);
    entry *e = &cache[hash_of(code, lasti) % CACHE];
    if (e->code == code && e->lasti == lasti)
        return e->site;
    uint32_t site = intern(code, frame);
    Py_INCREF(code);
    PyCodeObject *old = e->code;
    *e = (entry){code, lasti, site};
    Py_XDECREF(old);
    return site;
}

uint32_t tr__py_site(void) {
    PyFrameObject *frame = PyEval_GetFrame();
    Py_XINCREF(frame);
    while (frame != NULL) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        if (!is_own(code)) {
            uint32_t site = site_of(frame, code);
            Py_DECREF(code);
            Py_DECREF(frame);
            return site;
        }
        Py_DECREF(code);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    return 0;
}

static PyObject *set_package(PyObject *module, PyObject *folder) {
    const char *text = PyUnicode_AsUTF8(folder);
    if (text == NULL)
        return NULL;
    char *copy = PyMem_RawMalloc(strlen(text) + 1);
    if (copy == NULL)
        return PyErr_NoMemory();
    strcpy(copy, text);
    PyMem_RawFree(package);
    package = copy;
    Py_RETURN_NONE;
}

static PyObject *site(PyObject *module, PyObject *unused) {
    return PyUnicode_FromString(tr_site_text(tr__py_site()));
}

static PyMethodDef methods[] = {
    {"_set_package", set_package, METH_O, "_set_package(folder): files below it are Terra's own."},
    {"_site", site, METH_NOARGS, "_site() -> str: file:line of the innermost frame of the program."},
    {NULL},
};

int tr__py_site_init(PyObject *module) {
    return PyModule_AddFunctions(module, methods);
}
