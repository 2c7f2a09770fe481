from pgtick._fast.kinds cimport Kind

cdef object value_object(Kind kind, int scale, const char *p, Py_ssize_t length)
cdef str numeric_text(const char *p, Py_ssize_t length)
