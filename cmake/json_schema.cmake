# llama.cpp's JSON schema -> grammar, five files of its common/. The rest of it (downloads, arguments, chat) stays out:
# csrc/text/common_strings.cpp has the three functions of common.cpp that these call.
set(common_dir ${ATP_LLAMA_DIR}/common)
if(NOT EXISTS ${common_dir}/json-schema-to-grammar.cpp OR NOT EXISTS ${common_dir}/json-schema.cpp)
    message(FATAL_ERROR "${ATP_LLAMA_DIR} has no common/json-schema.cpp and json-schema-to-grammar.cpp.")
endif()
add_library(atp_json_schema OBJECT EXCLUDE_FROM_ALL
    ${common_dir}/json-schema-to-grammar.cpp ${common_dir}/json-schema.cpp ${common_dir}/json.cpp
    ${common_dir}/trie.cpp ${common_dir}/unicode.cpp)
target_include_directories(atp_json_schema PUBLIC ${common_dir} PRIVATE ${ATP_LLAMA_DIR}/vendor)
target_link_libraries(atp_json_schema PUBLIC llama ggml)
