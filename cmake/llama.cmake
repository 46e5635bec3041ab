# llama.cpp, ggml and mtmd as static libraries with hidden symbols. Sets ATP_LLAMA_DIR to the source in use.

include(${CMAKE_CURRENT_LIST_DIR}/llama_source.cmake)

# Built static and hidden, so that a process may also load another copy of llama.cpp (llama_cpp, say).
set(BUILD_SHARED_LIBS OFF CACHE BOOL "llama.cpp as shared libraries (not supported here)" FORCE)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

# Only the libraries: no executables, tests, downloads, server, web page or video.
set(LLAMA_BUILD_COMMON   OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TESTS    OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_TOOLS    OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_EXAMPLES OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_SERVER   OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_APP      OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_UI       OFF CACHE BOOL "" FORCE)
set(LLAMA_OPENSSL        OFF CACHE BOOL "" FORCE)
set(LLAMA_BUILD_MTMD     ON  CACHE BOOL "" FORCE)
set(MTMD_VIDEO           OFF CACHE BOOL "" FORCE)
set(LLAMA_ALL_WARNINGS   OFF CACHE BOOL "")
set(GGML_CCACHE          OFF CACHE BOOL "" FORCE)  # the compiler launcher above does it

# ggml's own threads instead: OpenMP's poll for long on a busy machine and do not survive fork()
set(GGML_OPENMP OFF CACHE BOOL "OpenMP threads")

if(APPLE)
    set(GGML_METAL_EMBED_LIBRARY ON  CACHE BOOL "")  # no shader file to find at run time
endif()

if(ATP_SANITIZE)
    add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
    add_link_options(-fsanitize=address,undefined)
endif()

# SYSTEM: our warnings and -Werror stop at llama.cpp's headers.
add_subdirectory(${ATP_LLAMA_DIR} ${CMAKE_BINARY_DIR}/llama.cpp EXCLUDE_FROM_ALL SYSTEM)

# Which backends there are concerns ggml's registry alone. Kept out of the others' command lines, a build folder
# that changes its backends does not compile llama.cpp again.
set_target_properties(ggml PROPERTIES INTERFACE_COMPILE_DEFINITIONS "")

if(GGML_RPC)  # tests only: the RPC device on loopback stands in for a GPU
    add_subdirectory(${ATP_LLAMA_DIR}/tools/rpc ${CMAKE_BINARY_DIR}/llama.cpp/tools/rpc EXCLUDE_FROM_ALL SYSTEM)
endif()
