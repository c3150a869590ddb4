# find_package(Edgeslim CONFIG) in a project that builds its models along with its firmware. `edgeslim cmake-dir` prints
# the folder of this file, for -DEdgeslim_DIR or CMAKE_PREFIX_PATH.
#
#   edgeslim_add_model(NAME MODEL model TARGET target [DATA file] [TASK task] [RECIPE file] [MAX_DROP x] [MAX_SIZE size])
#   edgeslim_add_model(NAME PROJECT folder TARGET target)      # what the folder's edgeslim.toml says
#   target_link_libraries(firmware PRIVATE NAME)               # the loader, and the build's order
#   target_link_libraries(firmware PRIVATE edgeslim::chat)     # the generate loop of a language model, besides
#   edgeslim_install_model(NAME DESTINATION share/models)
#
# A model is built at build time, by `edgeslim build`, and again only when one of its inputs changed: the model's files,
# data, recipe, profile (a depfile, which Ninja and Make read). The unpacked package is the target's property
# EDGESLIM_FOLDER. EDGESLIM_COMMAND names the program, as a list: "python;-m;edgeslim".
include_guard(GLOBAL)
include("${CMAKE_CURRENT_LIST_DIR}/EdgeslimLoader.cmake")

if(NOT EDGESLIM_COMMAND)
  find_program(EDGESLIM_COMMAND edgeslim NO_CMAKE_FIND_ROOT_PATH)
  if(NOT EDGESLIM_COMMAND)
    message(FATAL_ERROR "edgeslim: no program edgeslim on PATH. Set EDGESLIM_COMMAND to it.")
  endif()
endif()

function(edgeslim_add_model name)
  cmake_parse_arguments(arg "" "MODEL;PROJECT;TARGET;DATA;TASK;RECIPE;MAX_DROP;MAX_SIZE" "" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_TARGET OR (NOT arg_MODEL AND NOT arg_PROJECT) OR (arg_MODEL AND arg_PROJECT))
    message(FATAL_ERROR "edgeslim_add_model(${name}): needs TARGET, and MODEL or PROJECT; "
                        "not understood: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/edgeslim/${name}")
  set(package "${folder}/${name}.tar.gz")
  set(manifest "${folder}/${name}/manifest.json")
  set(options --target "${arg_TARGET}" --name "${name}" --out "${folder}" --depfile "${package}.d" --quiet)
  foreach(option IN ITEMS DATA TASK RECIPE MAX_DROP MAX_SIZE)
    if(arg_${option})
      string(TOLOWER "--${option}" word)
      string(REPLACE "_" "-" word "${word}")
      list(APPEND options ${word} "${arg_${option}}")
    endif()
  endforeach()
  if(arg_PROJECT)
    get_filename_component(where "${arg_PROJECT}" ABSOLUTE)
    set(also "${where}/edgeslim.toml")
  else()
    set(where "${CMAKE_CURRENT_SOURCE_DIR}")
    set(also)
  endif()
  add_custom_command(
    OUTPUT "${package}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${folder}"
    COMMAND ${EDGESLIM_COMMAND} build ${arg_MODEL} ${options}
    COMMAND "${CMAKE_COMMAND}" -E touch "${package}" # an input that is only newer leaves the package as it is
    WORKING_DIRECTORY "${where}"
    DEPENDS ${also}
    DEPFILE "${package}.d"
    COMMENT "edgeslim build ${name} for ${arg_TARGET}"
    VERBATIM)
  add_custom_command(
    OUTPUT "${manifest}"
    COMMAND "${CMAKE_COMMAND}" -E rm -rf "${folder}/${name}"
    COMMAND "${CMAKE_COMMAND}" -E tar xzf "${package}"
    COMMAND "${CMAKE_COMMAND}" -E touch "${manifest}"
    WORKING_DIRECTORY "${folder}"
    DEPENDS "${package}"
    COMMENT "Unpacking ${name}"
    VERBATIM)
  add_custom_target(${name}_package ALL DEPENDS "${manifest}")
  add_library(${name} INTERFACE)
  add_dependencies(${name} ${name}_package)
  target_link_libraries(${name} INTERFACE edgeslim::loader)
  set_target_properties(${name} PROPERTIES EDGESLIM_FOLDER "${folder}/${name}")
endfunction()

function(edgeslim_install_model name)
  cmake_parse_arguments(arg "" "DESTINATION" "" ${ARGN})
  get_target_property(folder ${name} EDGESLIM_FOLDER)
  install(DIRECTORY "${folder}" DESTINATION "${arg_DESTINATION}" PATTERN "reference.npz" EXCLUDE PATTERN "cmake" EXCLUDE)
endfunction()
