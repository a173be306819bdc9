//! One transaction with the kernel's nf_tables: a batch of messages that is taken whole or not at all.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use super::nftables::Message;

/// Why the rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process may not.
    #[error(
        "this needs the capability NET_ADMIN in the pod's network namespace: add it to the capture step's \
         securityContext, or leave capture out (docs/kubernetes.md, \"Without capture\")"
    )]
    NotAllowed,
    /// The kernel has no nf_tables, or lacks a part of them.
    #[error(
        "the kernel lacks nf_tables with NAT and reject ({0}): load nf_tables, nft_chain_nat, nft_redir, nft_ct and \
         nft_reject_inet on the node"
    )]
    Missing(Errno),
    /// Anything else that the kernel said.
    #[error("the kernel did not take the rules: {0}")]
    Refused(Errno),
    /// It said nothing.
    #[error("the kernel did not answer in time")]
    Silent,
}

impl From<Errno> for CaptureError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PERM | Errno::ACCESS => Self::NotAllowed,
            Errno::NOENT | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => {
                Self::Missing(errno)
            }
            Errno::AGAIN => Self::Silent,
            errno => Self::Refused(errno),
        }
    }
}

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const HEADER: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);

/// Has the kernel do what `messages` say, all of it or nothing.
pub(super) fn transact(messages: &[Message]) -> Result<(), CaptureError> {
    let socket = open()?;
    // The subsystem that the batch is for (linux/netfilter/nfnetlink.h), which is nf_tables.
    let frame = [0, 0, 0, 10];
    let mut batch = Vec::new();
    put(&mut batch, BATCH_BEGIN, REQUEST, 0, &frame);
    for (message, sequence) in messages.iter().zip(1..) {
        put(&mut batch, message.kind, REQUEST | ACK | message.flags, sequence, &message.body);
    }
    put(&mut batch, BATCH_END, REQUEST, 0, &frame);
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &batch, SendFlags::empty(), &kernel)?;
    let mut waiting = messages.len();
    let mut answer = vec![0; 64 * 1024];
    while waiting > 0 {
        let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        waiting = waiting.saturating_sub(acknowledged(&answer[..length])?);
    }
    Ok(())
}

fn open() -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

fn put(batch: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: &[u8]) {
    let length = (HEADER + body.len()) as u32;
    batch.extend_from_slice(&length.to_ne_bytes());
    batch.extend_from_slice(&kind.to_ne_bytes());
    batch.extend_from_slice(&flags.to_ne_bytes());
    batch.extend_from_slice(&sequence.to_ne_bytes());
    batch.extend_from_slice(&[0; 4]); // the kernel knows which socket is ours
    batch.extend_from_slice(body);
}

/// How many messages `answer` acknowledges.
fn acknowledged(mut answer: &[u8]) -> Result<usize, CaptureError> {
    let mut count = 0;
    while let Some((header, _)) = answer.split_at_checked(HEADER + 4) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let errno = i32::from_ne_bytes([header[16], header[17], header[18], header[19]]);
        if kind == ERROR {
            match errno {
                0 => count += 1,
                errno => return Err(Errno::from_raw_os_error(-errno).into()),
            }
        }
        answer = answer.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a refusal of the kernel is taken for consent.
    #[test]
    fn answers_are_counted_and_the_first_refusal_ends_it() {
        let answer = |errno: i32| {
            let mut out = Vec::new();
            put(&mut out, ERROR, 0, 1, &[&errno.to_ne_bytes()[..], &[0; 16]].concat());
            out
        };
        assert_eq!(acknowledged(&[answer(0), answer(0)].concat()).unwrap(), 2);
        assert!(matches!(acknowledged(&[answer(0), answer(-1)].concat()), Err(CaptureError::NotAllowed)));
        assert!(matches!(acknowledged(&answer(-2)), Err(CaptureError::Missing(_))));
        assert!(matches!(acknowledged(&answer(-22)), Err(CaptureError::Refused(_))));
        assert_eq!(acknowledged(&[]).unwrap(), 0);
        assert_eq!(acknowledged(&[0; 12]).unwrap(), 0, "cut short");
    }
}
