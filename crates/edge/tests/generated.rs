//! The committed gRPC code is what the `.proto` files say. `KEIKO_BLESS=1` writes it anew.

use std::fs;
use std::path::Path;

#[test]
fn the_generated_code_is_fresh() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = here.join("../../proto");
    let set = protox::compile([proto.join("keiko/worker/v1/worker.proto")], [&proto]).unwrap();
    let (server, client) = (tempfile::TempDir::new().unwrap(), tempfile::TempDir::new().unwrap());
    let configured = |is_server: bool| tonic_prost_build::configure().build_server(is_server).build_client(!is_server);
    configured(true).out_dir(server.path()).compile_fds(set.clone()).unwrap();
    configured(false).out_dir(client.path()).compile_fds(set.clone()).unwrap();
    let mut descriptor = vec![];
    prost::Message::encode(&set, &mut descriptor).unwrap();
    let code = |made: &Path| fs::read(made.join("keiko.worker.v1.rs")).unwrap();
    check(&here.join("src/grpc/generated/descriptor.bin"), &descriptor);
    check(&here.join("src/grpc/generated/keiko.worker.v1.rs"), &code(server.path()));
    // The benchmarks are a client.
    check(&here.join("../../benches/src/generated/keiko.worker.v1.rs"), &code(client.path()));
}

fn check(committed: &Path, fresh: &[u8]) {
    if std::env::var_os("KEIKO_BLESS").is_some() {
        fs::write(committed, fresh).unwrap();
    }
    let known = fs::read(committed).unwrap_or_default();
    assert!(fresh == known, "{} is not what proto/ says; run 'make bless' and look at the change", committed.display());
}
