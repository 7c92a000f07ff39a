//! Embeds the console as it is built, and the crate again when that changes. Without it the server says what to do.

fn main() {
    let built = "../../console/dist";
    // Cargo watches what exists.
    if let Err(error) = std::fs::create_dir_all(built) {
        println!("cargo::warning=no folder for the console: {error}");
    }
    println!("cargo::rerun-if-changed={built}");
}
