# llama.cpp's converter and its gguf package, Python both, for atp_cpp.convert: into the wheel, and beside our sources
# when building in place.
set(parts ${ATP_LLAMA_DIR}/conversion ${ATP_LLAMA_DIR}/gguf-py/gguf)
if(NOT EXISTS ${ATP_LLAMA_DIR}/conversion/base.py OR NOT EXISTS ${ATP_LLAMA_DIR}/gguf-py/gguf/gguf_writer.py)
    message(FATAL_ERROR "${ATP_LLAMA_DIR} has no conversion/ or no gguf-py/gguf: atp_cpp.convert needs both.")
endif()
install(DIRECTORY ${parts} DESTINATION atp_cpp/convert/llama_cpp COMPONENT python
    FILES_MATCHING PATTERN "*.py" PATTERN "scripts" EXCLUDE PATTERN "__pycache__" EXCLUDE)
if(ATP_IN_PLACE)
    file(COPY ${parts} DESTINATION ${CMAKE_SOURCE_DIR}/python/atp_cpp/convert/llama_cpp
        FILES_MATCHING PATTERN "*.py" PATTERN "scripts" EXCLUDE PATTERN "__pycache__" EXCLUDE)
endif()
