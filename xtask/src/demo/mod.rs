//! stub
pub mod leaky {
    /// stub
    pub fn main() -> anyhow::Result<()> {
        Ok(())
    }
}
