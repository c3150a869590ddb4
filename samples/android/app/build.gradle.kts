plugins {
    id("com.android.application")
}

android {
    namespace = "com.example.edgeslim"
    compileSdk = 35

    defaultConfig {
        applicationId = "com.example.edgeslim"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
        buildConfigField("String", "MODEL", "\"${providers.gradleProperty("edgeslimName").get()}\"")
    }

    buildFeatures { buildConfig = true }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    // weights.esz is Huffman-coded already: deflating it again gains nothing and makes the first start slower.
    androidResources { noCompress += "esz" }
}

dependencies {
    // Brings the model, the loader and, through its .pom, onnxruntime-android.
    implementation(providers.gradleProperty("edgeslimModel").get())
}
