pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode.set(RepositoriesMode.FAIL_ON_PROJECT_REPOS)
    repositories {
        // The folder that edgeslim wrote: an ordinary Maven repository on disk.
        maven { url = uri(providers.gradleProperty("edgeslimMaven").get()) }
        google()
        mavenCentral() // ONNX Runtime's own AAR comes from here
    }
}

rootProject.name = "edgeslim-sample"
include(":app")
