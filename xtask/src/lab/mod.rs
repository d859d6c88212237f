//! stub
pub mod stale {
    /// stub
    pub fn main() -> anyhow::Result<()> {
        Ok(())
    }
}
