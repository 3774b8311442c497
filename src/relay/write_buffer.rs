//! Buffers bytes between a source and a sink that refuses them.

/// Bytes that the sink has refused so far. Owns no memory while it is empty.
#[derive(Default)]
pub(super) struct WriteBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl WriteBuffer {
    /// Returns the bytes that are not written yet.
    pub fn unwritten(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Removes the first `n` bytes.
    pub fn advance(&mut self, n: usize) {
        self.start += n;
        if self.unwritten().is_empty() {
            *self = Self::default();
        }
    }

    /// Adds bytes. Reserves no more memory than they need.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }
}
