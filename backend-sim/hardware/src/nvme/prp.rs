//! Physical Region Pages: where a command's data is.

use super::status::Status;
use crate::bus::Port;

const PAGE: u64 = 4096;

/// A part of the data that is in one piece on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) len: usize,
}

/// Reads a command's two PRP entries, and the lists that the second may lead to, for `len` bytes. Neighbours that follow
/// each other on the bus are one piece.
pub(super) fn pieces(port: &Port, first: u64, second: u64, len: usize) -> Result<Vec<Piece>, Status> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut left = len;
    let mut add = |address: u64, pieces: &mut Vec<Piece>| {
        let take = left.min((PAGE - address % PAGE) as usize);
        left -= take;
        match pieces.last_mut() {
            Some(last) if last.address.wrapping_add(last.len as u64) == address => last.len += take,
            _ => pieces.push(Piece { address, len: take }),
        }
        left
    };
    // Dwords only.
    if !first.is_multiple_of(4) {
        return Err(Status::INVALID_PRP_OFFSET);
    }
    let mut left = add(first, &mut pieces);
    if left == 0 {
        return Ok(pieces);
    }
    if left <= PAGE as usize {
        if !second.is_multiple_of(PAGE) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        add(second, &mut pieces);
        return Ok(pieces);
    }
    let mut list = second;
    if !list.is_multiple_of(8) {
        return Err(Status::INVALID_PRP_OFFSET);
    }
    while left > 0 {
        // A list goes to the end of its page; when more is needed its last entry leads to the next list.
        let room = ((PAGE - list % PAGE) / 8) as usize;
        let wanted = left.div_ceil(PAGE as usize);
        let count = wanted.min(room);
        let mut bytes = vec![0; count * 8];
        port.read(list, &mut bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let entries: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|entry| entry.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
            .collect();
        let (data, chain) = if wanted > room { entries.split_at(room - 1) } else { (&entries[..], &[][..]) };
        for &entry in data {
            if entry % PAGE != 0 {
                return Err(Status::INVALID_PRP_OFFSET);
            }
            left = add(entry, &mut pieces);
        }
        if let Some(&next) = chain.first() {
            if next % PAGE != 0 {
                return Err(Status::INVALID_PRP_OFFSET);
            }
            list = next;
        }
    }
    Ok(pieces)
}

/// Writes `data` to the host's pieces.
pub(super) fn to_host(port: &Port, pieces: &[Piece], data: &[u8]) -> Result<(), Status> {
    let mut done = 0;
    for piece in pieces {
        port.write(piece.address, &data[done..done + piece.len]).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        done += piece.len;
    }
    Ok(())
}

/// Reads `data` from the host's pieces.
pub(super) fn from_host(port: &Port, pieces: &[Piece], data: &mut [u8]) -> Result<(), Status> {
    let mut done = 0;
    for piece in pieces {
        port.read(piece.address, &mut data[done..done + piece.len])
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        done += piece.len;
    }
    Ok(())
}
