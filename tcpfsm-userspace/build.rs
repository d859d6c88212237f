//! Embeds the kernel programs' object: `cargo xtask build` builds it and names it in `TCPFSM_BPF_OBJECT`.
//! Without it (a plain `cargo build`, an editor) an empty object is embedded, and what needs the kernel
//! says so; the offline commands work.

use std::{env, fs, path::PathBuf};

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-env-changed=TCPFSM_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("tcpfsm.bpf.o");
    match env::var_os("TCPFSM_BPF_OBJECT") {
        Some(object) => {
            let object = PathBuf::from(object);
            println!("cargo:rerun-if-changed={}", object.display());
            fs::copy(&object, &out)?;
        }
        None => fs::write(&out, [])?,
    }
    Ok(())
}
