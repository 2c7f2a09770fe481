from libc.stdint cimport int64_t
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from pgtick._fast.memory cimport release  # its C code comes first

cdef extern from *:
    """
    #ifndef PGTICK_BATCH
    #define PGTICK_BATCH
    #include <cstdint>
    #include <memory>
    #include <string>
    #include <vector>

    typedef std::shared_ptr<char> PgtickMemory;

    struct PgtickField {
        std::string name, format;
        std::vector<PgtickMemory> buffers;
        int64_t n_nulls = 0;
    };

    struct PgtickBatch {
        int64_t length = 0;
        std::vector<PgtickField> fields;
    };

    /* Take a block into shared hands: it goes when the last of them lets go, in any thread. */
    static inline PgtickMemory pgtick_own(char *memory) {
        return PgtickMemory(memory, pgtick_free);
    }
    #endif
    """
    ctypedef shared_ptr[char] Memory "PgtickMemory"

    cppclass Field "PgtickField":
        Field() except +
        string name
        string format
        vector[Memory] buffers
        int64_t n_nulls

    cppclass Batch "PgtickBatch":
        Batch() except +
        int64_t length
        vector[Field] fields

    Memory own "pgtick_own"(char *memory) except +


cdef object schema_capsule(shared_ptr[Batch] batch)
cdef object array_capsule(shared_ptr[Batch] batch)
cdef object stream_capsule(shared_ptr[Batch] batch)
