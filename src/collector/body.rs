//! The body of a sender's request, read and decoded.
//!
//! Owns how much of batches may be in memory: bytes are counted as they arrive and before they are decoded, so that neither
//! what is only announced nor what is only a few bytes long until then takes any. Refuses to know what a record is.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zstd::bulk::Decompressor;
use zstd::zstd_safe::{DCtx, is_error_kind, zstd_sys::ZSTD_ErrorCode};

/// The largest body of a request, as it comes and decoded: 8 MiB.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// The most bytes of batches in memory, all senders together, in KiB: 64 MiB.
const ROOM_KIB: usize = 64 * 1024;

/// What all senders' batches share.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// A batch in memory, and its part of the room.
pub(super) struct Batch {
    bytes: Vec<u8>,
    part: Part,
}

/// A part of the room, in KiB. It is free again when this is dropped.
struct Part(Option<OwnedSemaphorePermit>);

/// How a body is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    /// RFC 8878.
    Zstd,
}

/// Why there is no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    TooLarge,
    Cut,
    Coding,
    NotZstd,
    Busy,
}

impl Room {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_KIB)))
    }

    /// Reads a body, taking room for each part as it comes.
    pub(super) async fn read<B>(&self, mut body: B) -> Result<Batch, Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        if body.size_hint().lower() > MAX_BODY as u64 {
            return Err(Unread::TooLarge);
        }
        let mut batch = Batch { bytes: Vec::new(), part: Part(None) };
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Unread::Cut)?.into_data() else { continue };
            let len = batch.bytes.len() + data.len();
            if len > MAX_BODY {
                return Err(Unread::TooLarge);
            }
            batch.part.grow(self, len)?;
            batch.bytes.extend_from_slice(&data);
        }
        Ok(batch)
    }

    /// Decodes a batch. It takes some tenths of a millisecond for a MiB, so a thread that may block does it.
    pub(super) fn decode(&self, batch: Batch, coding: Coding) -> Result<Batch, Unread> {
        if coding == Coding::Identity {
            return Ok(batch);
        }
        // A sender that does not say how much it is gets room for the most. Memory that nothing is written to costs nothing.
        let most = Decompressor::upper_bound(&batch.bytes).unwrap_or(MAX_BODY);
        if most > MAX_BODY {
            return Err(Unread::TooLarge);
        }
        let mut part = Part(None);
        part.grow(self, most)?;
        let mut bytes = Vec::with_capacity(most);
        DCtx::create().decompress(&mut bytes, &batch.bytes).map_err(|code| {
            let more = is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall);
            if more && most == MAX_BODY { Unread::TooLarge } else { Unread::NotZstd }
        })?;
        Ok(Batch { bytes, part })
    }
}

impl Batch {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Part {
    /// Makes it large enough for `bytes`.
    fn grow(&mut self, room: &Room, bytes: usize) -> Result<(), Unread> {
        let has = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(1024).saturating_sub(has) as u32; // at most 8 Ki
        let permit = room.0.clone().try_acquire_many_owned(more).map_err(|_| Unread::Busy)?;
        match &mut self.0 {
            Some(part) => part.merge(permit),
            None => self.0 = Some(permit),
        }
        Ok(())
    }
}

impl Coding {
    /// What `Content-Encoding` says (RFC 9110 section 8.4).
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Unread> {
        let mut said = headers.get_all(header::CONTENT_ENCODING).iter();
        match (said.next().map(|coding| coding.as_bytes().to_ascii_lowercase()), said.next()) {
            (None, _) => Ok(Self::Identity),
            (Some(coding), None) if coding == b"identity" => Ok(Self::Identity),
            (Some(coding), None) if coding == b"zstd" => Ok(Self::Zstd),
            _ => Err(Unread::Coding),
        }
    }
}

impl Unread {
    /// The answer; `None` where the same batch may be taken a moment later.
    pub(super) fn refusal(self) -> Option<(StatusCode, &'static str)> {
        match self {
            Self::TooLarge => Some((StatusCode::PAYLOAD_TOO_LARGE, "a batch has at most 8 MiB")),
            Self::Cut => Some((StatusCode::BAD_REQUEST, "the body ended early")),
            Self::Coding => Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "a body is plain, or coded by zstd")),
            Self::NotZstd => Some((StatusCode::BAD_REQUEST, "the body is not what zstd makes")),
            Self::Busy => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http_body_util::Full;

    use super::*;

    fn room(kib: usize) -> Room {
        Room(Arc::new(Semaphore::new(kib)))
    }

    async fn coded(bytes: &[u8]) -> Batch {
        let body = Full::new(Bytes::from(zstd::bulk::compress(bytes, 1).unwrap()));
        Room::new().read(body).await.ok().unwrap()
    }

    fn refused(outcome: Result<Batch, Unread>) -> Unread {
        outcome.err().unwrap()
    }

    /// If this fails, hundreds of senders at once take memory without bound, or a batch that was refused keeps its room.
    #[tokio::test]
    async fn what_finds_no_room_is_refused_and_gives_its_part_back() {
        let room = room(8);
        let body = |kib: usize| Full::new(Bytes::from(vec![b'x'; kib * 1024]));
        let first = room.read(body(5)).await.ok().unwrap();
        assert_eq!(refused(room.read(body(4)).await), Unread::Busy);
        assert_eq!(room.0.available_permits(), 3);
        let second = room.read(body(3)).await.ok().unwrap();
        drop((first, second));
        assert_eq!(room.0.available_permits(), 8);
        assert_eq!(refused(room.read(body(8 * 1024 + 1)).await), Unread::TooLarge);
    }

    /// If this fails, a few bytes of a sender become more than the collector has memory for, or are decoded wrongly.
    #[tokio::test]
    async fn a_coded_batch_takes_room_for_what_it_becomes() {
        let (small, large) = (vec![b'x'; 5 * 1024], vec![b'x'; MAX_BODY + 1]);
        let tight = room(8);
        let first = tight.decode(coded(&small).await, Coding::Zstd).ok().unwrap();
        assert_eq!((first.bytes(), tight.0.available_permits()), (&small[..], 3));
        assert_eq!(refused(tight.decode(coded(&small).await, Coding::Zstd)), Unread::Busy);
        assert_eq!(refused(Room::new().decode(coded(&large).await, Coding::Zstd)), Unread::TooLarge);
        assert_eq!(
            Room::new().decode(coded(&large[1..]).await, Coding::Zstd).ok().unwrap().bytes(),
            &large[1..]
        );
    }

    /// If this fails, what a sender codes as it goes, without saying how much it is, cannot be taken, or has no bound.
    #[tokio::test]
    async fn a_stream_that_does_not_say_its_length_has_the_same_bound() {
        for (len, taken) in [(100_000, true), (MAX_BODY, true), (MAX_BODY + 1, false)] {
            let plain = vec![b'x'; len];
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_contentsize(false).unwrap();
            encoder.write_all(&plain).unwrap();
            let body = encoder.finish().unwrap();
            assert_eq!(Decompressor::upper_bound(&body), None);
            let batch = Room::new().read(Full::new(Bytes::from(body))).await.ok().unwrap();
            match Room::new().decode(batch, Coding::Zstd) {
                Ok(batch) => assert!(taken && batch.bytes() == plain, "{len}"),
                Err(why) => assert!(!taken && why == Unread::TooLarge, "{len} {why:?}"),
            }
        }
    }
}
