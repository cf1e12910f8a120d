# terra_jemalloc: our own build of jemalloc (why: see scripts/build-jemalloc.sh), made on the spot if it isn't there.
set(TerraJemalloc_LIBRARY "${TERRA_JEMALLOC_ROOT}/lib/libtr_jemalloc.a")
if(NOT EXISTS "${TerraJemalloc_LIBRARY}")
    message(STATUS "Building jemalloc into ${TERRA_JEMALLOC_ROOT}")
    execute_process(COMMAND "${PROJECT_SOURCE_DIR}/scripts/build-jemalloc.sh" "${TERRA_JEMALLOC_ROOT}"
        OUTPUT_FILE "${CMAKE_BINARY_DIR}/jemalloc.log" ERROR_FILE "${CMAKE_BINARY_DIR}/jemalloc.log"
        RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "jemalloc could not be built: ${CMAKE_BINARY_DIR}/jemalloc.log")
    endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TerraJemalloc REQUIRED_VARS TerraJemalloc_LIBRARY)
if(NOT TARGET terra_jemalloc)
    add_library(terra_jemalloc STATIC IMPORTED)
    set_target_properties(terra_jemalloc PROPERTIES IMPORTED_LOCATION "${TerraJemalloc_LIBRARY}"
        INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${TERRA_JEMALLOC_ROOT}/include"
        INTERFACE_INCLUDE_DIRECTORIES "${TERRA_JEMALLOC_ROOT}/include" INTERFACE_LINK_LIBRARIES "dl")
endif()
