"""Columns handed over as Arrow: the C data interface in PyCapsules, no byte of a value copied.

Format: https://arrow.apache.org/docs/format/CDataInterface.html and CStreamInterface.html. Every structure
keeps the batch alive by a shared pointer of its own, so a consumer may move a child out, release the rest, and
do both in a thread without the GIL. No exception of C++ crosses a callback.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libcpp.memory cimport shared_ptr

from pgtick._fast.arrow_out cimport Batch

cdef extern from *:
    """
    #include <cerrno>
    #include <new>

    struct ArrowSchema {
        const char *format, *name, *metadata;
        int64_t flags, n_children;
        ArrowSchema **children, *dictionary;
        void (*release)(ArrowSchema *);
        void *private_data;
    };
    struct ArrowArray {
        int64_t length, null_count, offset, n_buffers, n_children;
        const void **buffers;
        ArrowArray **children, *dictionary;
        void (*release)(ArrowArray *);
        void *private_data;
    };
    struct ArrowArrayStream {
        int (*get_schema)(ArrowArrayStream *, ArrowSchema *);
        int (*get_next)(ArrowArrayStream *, ArrowArray *);
        const char *(*get_last_error)(ArrowArrayStream *);
        void (*release)(ArrowArrayStream *);
        void *private_data;
    };

    typedef std::shared_ptr<PgtickBatch> PgtickShared;

    /* What an exported structure's private_data points to. */
    template <class T> struct PgtickNode {
        PgtickShared batch;
        std::vector<const void *> buffers;
        std::vector<T> children;
        std::vector<T *> places;
    };

    template <class T> static void pgtick_release(T *exported) {
        for (int64_t i = 0; i < exported->n_children; i++)
            if (exported->children[i]->release)
                exported->children[i]->release(exported->children[i]);
        exported->release = nullptr;
        delete static_cast<PgtickNode<T> *>(exported->private_data);
    }

    template <class T> static PgtickNode<T> *pgtick_node(T *out, const PgtickShared &batch, size_t n_children) {
        auto *node = new PgtickNode<T>();
        node->batch = batch;
        *out = T();
        out->private_data = node;
        out->release = pgtick_release<T>;
        node->children.resize(n_children);
        for (auto &child : node->children)
            node->places.push_back(&child);
        out->n_children = (int64_t)n_children;
        out->children = n_children ? node->places.data() : nullptr;
        return node;
    }

    template <class T> static void pgtick_undo(T *out) {
        if (out->release)
            out->release(out);
    }

    static void pgtick_schema(const PgtickShared &batch, ArrowSchema *out) {
        *out = ArrowSchema();
        try {
            auto *node = pgtick_node(out, batch, batch->fields.size());
            out->format = "+s";
            out->name = "";
            for (size_t i = 0; i < batch->fields.size(); i++) {
                ArrowSchema *child = &node->children[i];
                pgtick_node(child, batch, 0);
                child->format = batch->fields[i].format.c_str();
                child->name = batch->fields[i].name.c_str();
                child->flags = 2; /* nullable */
            }
        } catch (...) {
            pgtick_undo(out);
            throw;
        }
    }

    static void pgtick_array(const PgtickShared &batch, ArrowArray *out) {
        *out = ArrowArray();
        try {
            auto *node = pgtick_node(out, batch, batch->fields.size());
            node->buffers.push_back(nullptr);
            out->length = batch->length;
            out->n_buffers = 1;
            out->buffers = node->buffers.data();
            for (size_t i = 0; i < batch->fields.size(); i++) {
                const PgtickField &field = batch->fields[i];
                ArrowArray *child = &node->children[i];
                auto *inner = pgtick_node(child, batch, 0);
                for (const auto &buffer : field.buffers)
                    inner->buffers.push_back(buffer.get());
                child->length = batch->length;
                child->null_count = field.n_nulls;
                child->n_buffers = (int64_t)inner->buffers.size();
                child->buffers = inner->buffers.data();
            }
        } catch (...) {
            pgtick_undo(out);
            throw;
        }
    }

    struct PgtickStream {
        PgtickShared batch;
        bool done = false;
    };

    static int pgtick_stream_schema(ArrowArrayStream *stream, ArrowSchema *out) {
        try {
            pgtick_schema(static_cast<PgtickStream *>(stream->private_data)->batch, out);
            return 0;
        } catch (...) {
            return ENOMEM;
        }
    }

    static int pgtick_stream_next(ArrowArrayStream *stream, ArrowArray *out) {
        auto *state = static_cast<PgtickStream *>(stream->private_data);
        *out = ArrowArray();
        if (state->done)
            return 0;
        try {
            pgtick_array(state->batch, out);
        } catch (...) {
            return ENOMEM;
        }
        state->done = true;
        return 0;
    }

    static const char *pgtick_stream_error(ArrowArrayStream *) {
        return "out of memory";
    }

    static void pgtick_stream_release(ArrowArrayStream *stream) {
        delete static_cast<PgtickStream *>(stream->private_data);
        stream->release = nullptr;
    }

    static void pgtick_stream(const PgtickShared &batch, ArrowArrayStream *out) {
        *out = ArrowArrayStream();
        auto *state = new PgtickStream();
        state->batch = batch;
        out->private_data = state;
        out->get_schema = pgtick_stream_schema;
        out->get_next = pgtick_stream_next;
        out->get_last_error = pgtick_stream_error;
        out->release = pgtick_stream_release;
    }

    /* A consumer that took the content has set release to NULL; else it is still ours. */
    template <class T> static void pgtick_drop(T *exported) {
        if (exported->release)
            exported->release(exported);
        delete exported;
    }
    """
    cppclass ArrowSchema:
        pass

    cppclass ArrowArray:
        pass

    cppclass ArrowArrayStream:
        pass

    void pgtick_schema(shared_ptr[Batch] batch, ArrowSchema *out) except +
    void pgtick_array(shared_ptr[Batch] batch, ArrowArray *out) except +
    void pgtick_stream(shared_ptr[Batch] batch, ArrowArrayStream *out) except +
    void drop_schema "pgtick_drop"(ArrowSchema *exported) noexcept
    void drop_array "pgtick_drop"(ArrowArray *exported) noexcept
    void drop_stream "pgtick_drop"(ArrowArrayStream *exported) noexcept


cdef void _end_schema(object capsule) noexcept:
    drop_schema(<ArrowSchema *>PyCapsule_GetPointer(capsule, "arrow_schema"))


cdef void _end_array(object capsule) noexcept:
    drop_array(<ArrowArray *>PyCapsule_GetPointer(capsule, "arrow_array"))


cdef void _end_stream(object capsule) noexcept:
    drop_stream(<ArrowArrayStream *>PyCapsule_GetPointer(capsule, "arrow_array_stream"))


cdef object schema_capsule(shared_ptr[Batch] batch):
    cdef ArrowSchema *exported = new ArrowSchema()
    try:
        pgtick_schema(batch, exported)
        return PyCapsule_New(exported, "arrow_schema", _end_schema)
    except BaseException:
        drop_schema(exported)
        raise


cdef object array_capsule(shared_ptr[Batch] batch):
    cdef ArrowArray *exported = new ArrowArray()
    try:
        pgtick_array(batch, exported)
        return PyCapsule_New(exported, "arrow_array", _end_array)
    except BaseException:
        drop_array(exported)
        raise


cdef object stream_capsule(shared_ptr[Batch] batch):
    cdef ArrowArrayStream *exported = new ArrowArrayStream()
    try:
        pgtick_stream(batch, exported)
        return PyCapsule_New(exported, "arrow_array_stream", _end_stream)
    except BaseException:
        drop_stream(exported)
        raise
