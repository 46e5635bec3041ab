# Where llama.cpp comes from: -DATP_LLAMA_CPP_DIR, else third_party/llama.cpp, else the pinned sdist, fetched once.
if(ATP_LLAMA_CPP_DIR)
    set(ATP_LLAMA_DIR ${ATP_LLAMA_CPP_DIR})
elseif(EXISTS ${CMAKE_SOURCE_DIR}/third_party/llama.cpp/CMakeLists.txt)
    set(ATP_LLAMA_DIR ${CMAKE_SOURCE_DIR}/third_party/llama.cpp)
else()
    execute_process(
        COMMAND ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/third_party/fetch_llama_cpp.py
        OUTPUT_VARIABLE ATP_LLAMA_DIR OUTPUT_STRIP_TRAILING_WHITESPACE
        RESULT_VARIABLE status)
    if(NOT status EQUAL 0)
        message(FATAL_ERROR "llama.cpp's source is missing: third_party/fetch_llama_cpp.py says why, above.")
    endif()
endif()
if(NOT EXISTS ${ATP_LLAMA_DIR}/src/llama-graph.h OR NOT EXISTS ${ATP_LLAMA_DIR}/tools/mtmd/mtmd.h)
    message(FATAL_ERROR "${ATP_LLAMA_DIR} is not a llama.cpp source tree with tools/mtmd in it.")
endif()
message(STATUS "llama.cpp source: ${ATP_LLAMA_DIR}")
