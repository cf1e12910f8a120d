# The Python module terra._C and the package around it. In the build tree the package is assembled under
# ${CMAKE_BINARY_DIR}/python out of links to src/python/terra, so that PYTHONPATH=build/debug/python tests a debug build.
file(GLOB_RECURSE python_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/python/*.c")
python_add_library(_C MODULE WITH_SOABI ${python_sources})
target_link_libraries(_C PRIVATE terra_tracer)
target_compile_options(_C PRIVATE ${TERRA_BASELINE_FLAGS} -Wno-missing-prototypes) # CPython's PyInit has none
# Where libdnnl lies when a wheel brought it: the scheme's data folder, seen from site-packages/terra in a virtual
# environment or prefix, a lib64 layout, and pip's --target.
set_target_properties(_C PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/python/terra"
    INSTALL_RPATH "$ORIGIN/../../..;$ORIGIN/../../../../lib;$ORIGIN/../lib")
# jemalloc marks its API for export; it must stay ours alone.
target_link_options(_C PRIVATE -Wl,--exclude-libs,libtr_jemalloc.a -Wl,-z,now)

file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/python/terra")
file(GLOB package_entries CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/python/terra/*")
foreach(entry IN LISTS package_entries)
    get_filename_component(name "${entry}" NAME)
    if(NOT name STREQUAL "__pycache__")
        file(CREATE_LINK "${entry}" "${CMAKE_BINARY_DIR}/python/terra/${name}" SYMBOLIC)
    endif()
endforeach()

install(TARGETS _C LIBRARY DESTINATION terra)
