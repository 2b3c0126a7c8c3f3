//! Compiles `piecemeal.proto` with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=piecemeal.proto");
    if std::env::var_os("CARGO_FEATURE_GRPC").is_some() {
        tonic_prost_build::configure().compile_fds(protox::compile(["piecemeal.proto"], ["."])?)?;
    }
    Ok(())
}
