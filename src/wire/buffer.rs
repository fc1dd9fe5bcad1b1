//! Read buffers that are lent while there is something in them and given back when there is not.
//!
//! Invariant: an idle connection holds no buffer, and a pool keeps no more than its bound.

use std::sync::{Arc, Mutex, PoisonError};

/// Buffers of one size for the sessions of one thread.
///
/// std Mutex: held for a push or a pop, never across an await.
#[derive(Clone, Debug)]
pub struct BufferPool {
    inner: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    size: usize,
    keep: usize,
    free: Mutex<Vec<Box<[u8]>>>,
}

impl BufferPool {
    /// Buffers of `size` bytes, of which at most `keep` wait unused.
    pub fn new(size: usize, keep: usize) -> Self {
        Self { inner: Arc::new(Pool { size, keep, free: Mutex::new(Vec::new()) }) }
    }

    fn take(&self) -> Box<[u8]> {
        let free = self.inner.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| vec![0; self.inner.size].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        if buffer.len() == self.inner.size {
            let mut free = self.inner.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < self.inner.keep {
                free.push(buffer);
            }
        }
    }
}

/// Bytes read from one peer and not yet dealt with.
#[derive(Debug)]
pub struct ReadBuffer {
    pool: BufferPool,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReadBuffer {
    pub fn new(pool: BufferPool) -> Self {
        Self { pool, bytes: Box::default(), start: 0, end: 0 }
    }

    #[inline]
    pub fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The buffer itself, an empty one staying behind.
    #[inline]
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.pool.clone()))
    }

    /// Forgets the first `count` bytes.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Makes room so that a message of `size` bytes at the front can become whole.
    ///
    /// The caller has held `size` against its bound. Growth is by doubling, as bytes arrive, so a
    /// claimed length alone costs nothing.
    pub fn reserve(&mut self, size: usize) {
        let held = self.end - self.start;
        if self.bytes.is_empty() {
            self.bytes = self.pool.take();
        }
        if self.start + size <= self.bytes.len() {
            return;
        }
        let wanted = if held == self.bytes.len() { size.min(held * 2) } else { self.bytes.len() };
        if wanted > self.bytes.len() {
            let mut grown = vec![0; wanted].into_boxed_slice();
            if let Some(front) = grown.get_mut(..held) {
                front.copy_from_slice(self.data());
            }
            self.pool.give(std::mem::replace(&mut self.bytes, grown));
        } else {
            self.bytes.copy_within(self.start..self.end, 0);
        }
        self.start = 0;
        self.end = held;
    }

    /// Free space behind the data, for a read; empty only when the buffer is full.
    #[inline]
    pub fn space(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = self.pool.take();
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that a read put `count` bytes into [`Self::space`].
    #[inline]
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// Puts bytes in as if they had been read.
    pub fn fill_from(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.reserve(self.data().len() + rest.len());
            let space = self.space();
            let count = space.len().min(rest.len());
            let (now, later) = rest.split_at(count);
            if let Some(front) = space.get_mut(..count) {
                front.copy_from_slice(now);
            }
            self.filled(count);
            rest = later;
        }
    }

    /// Gives the buffer back when nothing is in it.
    #[inline]
    pub fn release(&mut self) {
        if self.is_empty() && !self.bytes.is_empty() {
            self.pool.give(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.pool.give(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_survives_growth_compaction_and_release() {
        let pool = BufferPool::new(8, 2);
        let mut buffer = ReadBuffer::new(pool.clone());
        let text: Vec<u8> = (0..100).collect();
        buffer.fill_from(&text);
        assert_eq!(buffer.data(), &text[..]);
        buffer.consume(90);
        buffer.reserve(40);
        assert_eq!(buffer.data(), &text[90..]);
        buffer.consume(10);
        assert!(buffer.is_empty());
        buffer.release();
        assert_eq!(buffer.bytes.len(), 0, "an idle connection holds no buffer");
        drop(buffer);
        assert!(pool.inner.free.lock().unwrap().len() <= 2);
    }

    #[test]
    fn a_claimed_size_costs_nothing_before_bytes_arrive() {
        let mut buffer = ReadBuffer::new(BufferPool::new(8, 2));
        buffer.fill_from(b"abc");
        buffer.reserve(1 << 30);
        assert!(buffer.bytes.len() <= 16);
        assert_eq!(buffer.data(), b"abc");
    }
}
