# The extension module atp_cpp._core, from csrc/.

if(NOT pybind11_DIR)
    execute_process(
        COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
        OUTPUT_VARIABLE pybind11_cmakedir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND CMAKE_PREFIX_PATH ${pybind11_cmakedir})
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 3.0 CONFIG REQUIRED)

# pip's isolated builds see pybind11 in a new temporary folder each time. A copy of its headers at a place that
# stays lets a second install keep the objects of the first.
set(headers ${CMAKE_BINARY_DIR}/pybind11-${pybind11_VERSION})
file(COPY ${pybind11_INCLUDE_DIR}/pybind11 DESTINATION ${headers})
set_target_properties(pybind11::headers PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${headers} INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${headers})

file(GLOB ATP_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/*.cpp ${CMAKE_SOURCE_DIR}/csrc/bindings/*.cpp)
pybind11_add_module(_core MODULE NO_EXTRAS ${ATP_SOURCES})
target_compile_definitions(_core PRIVATE ATP_VERSION="${PROJECT_VERSION}")
target_include_directories(_core PRIVATE ${CMAKE_SOURCE_DIR}/csrc)
# llama.cpp's private headers: csrc/llama_private.cpp alone may include them.
target_include_directories(_core SYSTEM PRIVATE
    ${ATP_LLAMA_DIR}/src ${ATP_LLAMA_DIR}/ggml/src ${ATP_LLAMA_DIR}/tools/mtmd)
target_link_libraries(_core PRIVATE mtmd llama ggml)

if(MSVC)
    target_compile_options(_core PRIVATE /W4 /utf-8 /bigobj $<$<BOOL:${ATP_WERROR}>:/WX>)
else()
    target_compile_options(_core PRIVATE -Wall -Wextra $<$<BOOL:${ATP_WERROR}>:-Werror>)
endif()
if(APPLE)
    target_link_options(_core PRIVATE -Wl,-exported_symbol,_PyInit__core)
    set_target_properties(_core PROPERTIES INSTALL_RPATH "@loader_path")
elseif(UNIX)
    target_link_options(_core PRIVATE -Wl,--exclude-libs,ALL)
    set_target_properties(_core PROPERTIES INSTALL_RPATH "$ORIGIN")
endif()
if(TARGET ggml-rpc-server)
    add_dependencies(_core ggml-rpc-server)
endif()
if(ATP_IN_PLACE)
    set_target_properties(_core PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_SOURCE_DIR}/python/atp_cpp)
endif()

install(TARGETS _core LIBRARY DESTINATION atp_cpp COMPONENT python)
