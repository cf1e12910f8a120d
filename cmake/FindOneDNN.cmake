# OneDNN::dnnl: a system library >= 3.5 with the OpenMP runtime where there is one (TERRA_ONEDNN=auto or system), else
# the PyPI wheels onednn-cpu-gomp and onednn-devel-cpu-gomp of the Python that builds us. OneDNN_FROM says which.
function(terra_onednn_version include out)
    set(version 0)
    foreach(file dnnl_version.h dnnl_config.h)
        if(EXISTS "${include}/oneapi/dnnl/${file}")
            file(STRINGS "${include}/oneapi/dnnl/${file}" lines REGEX "#define DNNL_VERSION_(MAJOR|MINOR|PATCH) ")
            if(lines MATCHES "MAJOR +([0-9]+).*MINOR +([0-9]+).*PATCH +([0-9]+)")
                set(version "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3}")
            endif()
        endif()
    endforeach()
    set(${out} ${version} PARENT_SCOPE)
endfunction()

set(OneDNN_FROM "")
if(NOT TERRA_ONEDNN STREQUAL "wheel")
    # Not through PATH: that would find the wheel of an activated environment, and call it the system's.
    find_path(OneDNN_SYSTEM_INCLUDE oneapi/dnnl/dnnl.h NO_CMAKE_PATH NO_CMAKE_ENVIRONMENT_PATH NO_SYSTEM_ENVIRONMENT_PATH)
    find_library(OneDNN_SYSTEM_LIBRARY dnnl NO_CMAKE_PATH NO_CMAKE_ENVIRONMENT_PATH NO_SYSTEM_ENVIRONMENT_PATH)
    if(OneDNN_SYSTEM_INCLUDE AND OneDNN_SYSTEM_LIBRARY)
        terra_onednn_version("${OneDNN_SYSTEM_INCLUDE}" version)
        file(STRINGS "${OneDNN_SYSTEM_INCLUDE}/oneapi/dnnl/dnnl_config.h" omp
            REGEX "#define DNNL_CPU_THREADING_RUNTIME +DNNL_RUNTIME_OMP")
        if(version VERSION_GREATER_EQUAL 3.5 AND omp)
            set(OneDNN_FROM system)
            set(OneDNN_INCLUDE "${OneDNN_SYSTEM_INCLUDE}")
            set(OneDNN_LIBRARY "${OneDNN_SYSTEM_LIBRARY}")
        endif()
    endif()
endif()

if(NOT OneDNN_FROM AND NOT TERRA_ONEDNN STREQUAL "system")
    # The wheels put their files beside site-packages (../../../include, ../../libdnnl.so.3): ask for each by name.
    execute_process(
        COMMAND "${Python_EXECUTABLE}" -c "
import importlib.metadata as m
def find(dist, name):
    for f in m.files(dist) or []:
        if str(f).endswith(name):
            return f.locate().resolve()
    raise SystemExit(f'{dist} has no {name}')
print(find('onednn-devel-cpu-gomp', 'include/oneapi/dnnl/dnnl.h').parents[2], find('onednn-cpu-gomp', 'libdnnl.so.3'), sep=';', end='')
"
        OUTPUT_VARIABLE paths ERROR_VARIABLE error RESULT_VARIABLE failed)
    if(NOT failed)
        list(GET paths 0 OneDNN_INCLUDE)
        list(GET paths 1 OneDNN_LIBRARY)
        terra_onednn_version("${OneDNN_INCLUDE}" version)
        set(OneDNN_FROM wheel)
    endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OneDNN REQUIRED_VARS OneDNN_LIBRARY OneDNN_INCLUDE
    REASON_FAILURE_MESSAGE "pip install onednn-cpu-gomp==2023.2.0 onednn-devel-cpu-gomp==2023.2.0 ${error}")
if(OneDNN_FOUND AND NOT TARGET OneDNN::dnnl)
    message(STATUS "oneDNN ${version} (${OneDNN_FROM}): ${OneDNN_LIBRARY}")
    add_library(OneDNN::dnnl SHARED IMPORTED)
    set_target_properties(OneDNN::dnnl PROPERTIES IMPORTED_LOCATION "${OneDNN_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${OneDNN_INCLUDE}" INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${OneDNN_INCLUDE}")
endif()
