//! The committed gRPC code is what the `.proto` files say. `KEIKO_BLESS=1` writes it anew.

use std::fs;
use std::path::Path;

const FILES: [&str; 2] = ["keiko/worker/v1/worker.proto", "keiko/events/v1/events.proto"];
const PACKAGES: [&str; 2] = ["keiko.worker.v1.rs", "keiko.events.v1.rs"];

#[test]
fn the_generated_code_is_fresh() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = here.join("../../proto");
    let set = protox::compile(FILES.map(|file| proto.join(file)), [&proto]).unwrap();
    let (server, client) = (tempfile::TempDir::new().unwrap(), tempfile::TempDir::new().unwrap());
    let configured = |is_server: bool| tonic_prost_build::configure().build_server(is_server).build_client(!is_server);
    configured(true).out_dir(server.path()).compile_fds(set.clone()).unwrap();
    configured(false).out_dir(client.path()).compile_fds(set.clone()).unwrap();
    let mut descriptor = vec![];
    prost::Message::encode(&set, &mut descriptor).unwrap();
    let code = |made: &Path, package: &str| fs::read(made.join(package)).unwrap();
    check(&here.join("src/grpc/generated/descriptor.bin"), &descriptor);
    for package in PACKAGES {
        check(&here.join("src/grpc/generated").join(package), &code(server.path(), package));
    }
    // The benchmarks are a client.
    let worker = PACKAGES[0];
    check(&here.join("../../benches/src/generated").join(worker), &code(client.path(), worker));
}

fn check(committed: &Path, fresh: &[u8]) {
    if std::env::var_os("KEIKO_BLESS").is_some() {
        fs::write(committed, fresh).unwrap();
    }
    let known = fs::read(committed).unwrap_or_default();
    assert!(fresh == known, "{} is not what proto/ says; run 'make bless' and look at the change", committed.display());
}
