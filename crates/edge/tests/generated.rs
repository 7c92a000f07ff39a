//! The committed gRPC code is what the `.proto` files say. `KEIKO_BLESS=1` writes it anew.

use std::fs;
use std::path::Path;

#[test]
fn the_generated_code_is_fresh() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = here.join("../../proto");
    let set = protox::compile([proto.join("keiko/worker/v1/worker.proto")], [&proto]).unwrap();
    let made = tempfile::TempDir::new().unwrap();
    tonic_prost_build::configure()
        .out_dir(made.path())
        .file_descriptor_set_path(made.path().join("descriptor.bin"))
        .compile_fds(set.clone())
        .unwrap();
    let mut bytes = vec![];
    prost::Message::encode(&set, &mut bytes).unwrap();
    fs::write(made.path().join("descriptor.bin"), bytes).unwrap();
    let committed = here.join("src/grpc/generated");
    for name in ["keiko.worker.v1.rs", "descriptor.bin"] {
        let fresh = fs::read(made.path().join(name)).unwrap();
        if std::env::var_os("KEIKO_BLESS").is_some() {
            fs::write(committed.join(name), &fresh).unwrap();
        }
        let known = fs::read(committed.join(name)).unwrap_or_default();
        assert!(fresh == known, "{name} is not what proto/ says; run 'make bless' and look at the change");
    }
}
