"""Blocks that grow without being copied, and are given back whole.

A column grows to tens of megabytes. glibc keeps blocks of that size in its heap, where each growth leaves a hole
behind: a third read of 66 MB held 82 MB. On Linux a large block is therefore a mapping of its own, which
mremap lengthens in place; elsewhere, and while it is small, it is realloc's.
"""

cdef extern from *:
    """
    #ifndef PGTICK_MEMORY
    #define PGTICK_MEMORY
    #include <cstddef>
    #include <cstdlib>
    #include <cstring>
    #ifdef __linux__
    #include <sys/mman.h>
    #endif

    /* 64 bytes, so that what follows is aligned as well as the block is. */
    struct PgtickHead {
        size_t size; /* head included */
        size_t mapped;
        char unused[64 - 2 * sizeof(size_t)];
    };

    static inline void pgtick_free(void *block) {
        if (!block)
            return;
        PgtickHead *head = (PgtickHead *)block - 1;
    #ifdef __linux__
        if (head->mapped) {
            munmap(head, head->size);
            return;
        }
    #endif
        std::free(head);
    }

    /* realloc for these blocks: NULL where there is no memory, and the block is as it was. */
    static inline void *pgtick_resize(void *block, size_t size) {
        PgtickHead *old = block ? (PgtickHead *)block - 1 : nullptr, *head;
        if (size > (size_t)-1 / 4)
            return nullptr;
        size += sizeof(PgtickHead);
    #ifdef __linux__
        if (old && old->mapped) {
            size = (size + 65535) & ~(size_t)65535;
            if (size == old->size)
                return block;
            void *moved = mremap(old, old->size, size, MREMAP_MAYMOVE);
            if (moved == MAP_FAILED)
                return nullptr;
            head = (PgtickHead *)moved;
            head->size = size;
            return head + 1;
        }
        if (size >= 1 << 20) {
            size = (size + 65535) & ~(size_t)65535;
            void *mapping = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (mapping == MAP_FAILED)
                return nullptr;
            head = (PgtickHead *)mapping;
            if (old)
                memcpy(head, old, old->size);
            head->size = size;
            head->mapped = true;
            std::free(old);
            return head + 1;
        }
    #endif
        head = (PgtickHead *)std::realloc(old, size);
        if (!head)
            return nullptr;
        head->size = size;
        head->mapped = false;
        return head + 1;
    }
    #endif
    """
    void *resize "pgtick_resize"(void *block, size_t size) noexcept nogil
    void release "pgtick_free"(void *block) noexcept nogil
