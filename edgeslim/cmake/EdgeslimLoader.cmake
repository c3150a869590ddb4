# Defines edgeslim::loader, a static library: a package's files to an open session of ONNX Runtime (edgeslim.h); and, where
# its sources are there, edgeslim::chat on top of it: the generate loop of a language model (edgeslim_chat.h).
#
# Compiled from source by the project that uses it, with that project's compiler and flags, so one package serves every
# machine. ONNX Runtime is taken as onnxruntime::onnxruntime, or found: ONNXRUNTIME_INCLUDE_DIR names the folder of
# onnxruntime_c_api.h, ONNXRUNTIME_LIBRARY the library.
include_guard(GLOBAL)

if(NOT TARGET onnxruntime::onnxruntime AND NOT ONNXRUNTIME_LIBRARY)
  find_package(onnxruntime CONFIG QUIET)
endif()
if(NOT TARGET onnxruntime::onnxruntime)
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  find_library(ONNXRUNTIME_LIBRARY NAMES onnxruntime)
  if(NOT ONNXRUNTIME_INCLUDE_DIR OR NOT ONNXRUNTIME_LIBRARY)
    message(FATAL_ERROR "edgeslim: no ONNX Runtime for the device. Set ONNXRUNTIME_INCLUDE_DIR to the folder of "
                        "onnxruntime_c_api.h and ONNXRUNTIME_LIBRARY to its libonnxruntime.so.")
  endif()
  add_library(onnxruntime::onnxruntime UNKNOWN IMPORTED GLOBAL)
  set_target_properties(onnxruntime::onnxruntime PROPERTIES
    IMPORTED_LOCATION "${ONNXRUNTIME_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}")
endif()

enable_language(C)
set(_edgeslim_folders "${CMAKE_CURRENT_LIST_DIR}/loader") # inside a package
if(NOT IS_DIRECTORY "${_edgeslim_folders}") # where edgeslim itself is installed
  get_filename_component(_edgeslim_root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
  set(_edgeslim_folders "${_edgeslim_root}/runtime/c" "${_edgeslim_root}/codec/c")
endif()
set(_edgeslim_sources)
foreach(_edgeslim_name IN ITEMS edgeslim.c edgeslim_open.c esz_load.c esz.c esz_token.c)
  foreach(_edgeslim_folder IN LISTS _edgeslim_folders)
    if(EXISTS "${_edgeslim_folder}/${_edgeslim_name}")
      list(APPEND _edgeslim_sources "${_edgeslim_folder}/${_edgeslim_name}")
    endif()
  endforeach()
endforeach()
add_library(edgeslim_loader STATIC ${_edgeslim_sources})
add_library(edgeslim::loader ALIAS edgeslim_loader)
target_include_directories(edgeslim_loader PUBLIC ${_edgeslim_folders})
target_compile_features(edgeslim_loader PRIVATE c_std_99)
# Compiled for size. The decoder's loops are what a first start waits for. On 32-bit machines they are few, and -O3 saves
# a third of their instructions; on 64-bit ones a loop for each kind of block would take 40 kB more than one for all.
option(EDGESLIM_FAST_DECODER "64-bit builds: a decoder of 65 kB in place of 23, of 4 to 20 % fewer instructions" OFF)
if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
  target_compile_options(edgeslim_loader PRIVATE
    -Os -ffunction-sections -fdata-sections -fno-unwind-tables -fno-asynchronous-unwind-tables)
  if(CMAKE_SIZEOF_VOID_P EQUAL 8 AND NOT EDGESLIM_FAST_DECODER)
    target_compile_definitions(edgeslim_loader PRIVATE ESZ_LEAN)
  else()
    foreach(_edgeslim_source IN LISTS _edgeslim_sources)
      if(_edgeslim_source MATCHES "/esz\\.c$")
        set_source_files_properties("${_edgeslim_source}" PROPERTIES COMPILE_OPTIONS -O3)
      endif()
    endforeach()
  endif()
endif()
set_target_properties(edgeslim_loader PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_link_libraries(edgeslim_loader PUBLIC onnxruntime::onnxruntime m)

set(_edgeslim_sources)
foreach(_edgeslim_name IN ITEMS edgeslim_chat.c edgeslim_decoder.c edgeslim_sample.c)
  foreach(_edgeslim_folder IN LISTS _edgeslim_folders)
    if(EXISTS "${_edgeslim_folder}/${_edgeslim_name}")
      list(APPEND _edgeslim_sources "${_edgeslim_folder}/${_edgeslim_name}")
    endif()
  endforeach()
endforeach()
if(_edgeslim_sources)
  add_library(edgeslim_chat STATIC ${_edgeslim_sources})
  add_library(edgeslim::chat ALIAS edgeslim_chat)
  target_compile_features(edgeslim_chat PRIVATE c_std_99)
  if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(edgeslim_chat PRIVATE
      -Os -ffunction-sections -fdata-sections -fno-unwind-tables -fno-asynchronous-unwind-tables)
  endif()
  set_target_properties(edgeslim_chat PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(edgeslim_chat PUBLIC edgeslim_loader)
endif()
