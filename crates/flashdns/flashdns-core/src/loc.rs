//! The data of LOC records (RFC 1876): degrees and metres as people write them.

use crate::form::Token;

/// Latitude and longitude 0, in thousandths of a second of arc (RFC 1876, 2).
const ZERO: u32 = 1 << 31;
/// The altitude that is written as 0, in centimetres above the lowest one.
const SEA_LEVEL_CM: i64 = 10_000_000;
const SECOND: u32 = 1000;
const MINUTE: u32 = 60 * SECOND;
const DEGREE: u32 = 60 * MINUTE;
/// Size, horizontal and vertical precision when they are left out: 1 m, 10 km, 10 m.
const DEFAULTS: [u8; 3] = [0x12, 0x16, 0x13];

pub(crate) const HINT: &str = "write degrees, minutes, seconds and N or S, the same and E or W, and an altitude, \
    such as `52 22 23.000 N 4 53 32.000 E -2.00m`; size and precisions in metres may follow";

/// Reads the words of a LOC record. The error is the place of the word that does not fit.
pub(crate) fn parse(tokens: &[Token<'_>]) -> Result<Vec<u8>, usize> {
    let mut at = 0;
    let latitude = angle(tokens, &mut at, 90, ["N", "S"])?;
    let longitude = angle(tokens, &mut at, 180, ["E", "W"])?;
    let altitude = tokens
        .get(at)
        .and_then(|token| centimetres(token.raw))
        .ok_or(at)?;
    let altitude = u32::try_from(altitude + SEA_LEVEL_CM).map_err(|_| at)?;
    at += 1;
    let mut extents = DEFAULTS;
    for extent in &mut extents {
        let Some(token) = tokens.get(at) else { break };
        *extent = centimetres(token.raw).and_then(exponent).ok_or(at)?;
        at += 1;
    }
    if at < tokens.len() {
        return Err(at);
    }
    let [size, horizontal, vertical] = extents;
    let mut wire = vec![0, size, horizontal, vertical];
    for field in [latitude, longitude, altitude] {
        wire.extend(field.to_be_bytes());
    }
    Ok(wire)
}

/// `d [m [s]] {N|S}`.
fn angle(tokens: &[Token<'_>], at: &mut usize, most: u32, signs: [&str; 2]) -> Result<u32, usize> {
    let mut total = 0;
    for (place, unit) in [DEGREE, MINUTE, SECOND].into_iter().enumerate() {
        let token = tokens.get(*at).ok_or(*at)?;
        if place > 0 && token.raw.starts_with(|first: char| first.is_ascii_alphabetic()) {
            break;
        }
        let value = if unit == SECOND {
            let thousandths = decimal(token.raw, 3).ok_or(*at)?;
            u32::try_from(thousandths)
                .ok()
                .filter(|value| *value < MINUTE)
                .ok_or(*at)?
        } else {
            let limit = if place == 0 { most } else { 59 };
            let whole = decimal(token.raw, 0).and_then(|value| u32::try_from(value).ok());
            whole.filter(|value| *value <= limit).ok_or(*at)? * unit
        };
        total += value;
        *at += 1;
    }
    if total > most * DEGREE {
        return Err(*at - 1);
    }
    let sign = tokens.get(*at).ok_or(*at)?;
    let angle = match signs.map(|word| word.eq_ignore_ascii_case(sign.raw)) {
        [true, _] => ZERO + total,
        [_, true] => ZERO - total,
        _ => return Err(*at),
    };
    *at += 1;
    Ok(angle)
}

/// A number with at most `places` digits behind its dot, times ten to the power of `places`.
fn decimal(text: &str, places: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_plain = !whole.is_empty() && (whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit());
    if !is_plain || fraction.len() > places || whole.len() > 10 || text.ends_with('.') {
        return None;
    }
    format!("{whole}{fraction:0<places$}").parse().ok()
}

/// Metres with or without the letter, as centimetres.
fn centimetres(text: &str) -> Option<i64> {
    let text = text.strip_suffix(['m', 'M']).unwrap_or(text);
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    Some(sign * i64::try_from(decimal(text, 2)?).ok()?)
}

/// Centimetres as one digit and a power of ten, rounded down to one digit as other servers do.
fn exponent(centimetres: i64) -> Option<u8> {
    let mut mantissa = u64::try_from(centimetres).ok()?;
    let mut power = 0_u8;
    while mantissa > 9 {
        mantissa /= 10;
        power += 1;
    }
    (power <= 9).then_some(u8::try_from(mantissa).ok()? << 4 | power)
}

/// The text of the data; `None` when it is not version 0 or holds numbers that have no text.
pub(crate) fn show(rdata: &[u8]) -> Option<String> {
    let (&[0, size, horizontal, vertical], rest) = rdata.split_first_chunk::<4>()? else {
        return None;
    };
    let mut numbers = [0_u32; 3];
    if rest.len() != 12 {
        return None;
    }
    for (number, bytes) in numbers.iter_mut().zip(rest.chunks_exact(4)) {
        *number = u32::from_be_bytes(bytes.try_into().ok()?);
    }
    let [latitude, longitude, altitude] = numbers;
    let mut shown = show_angle(latitude, 90, ["N", "S"])?;
    shown += " ";
    shown += &show_angle(longitude, 180, ["E", "W"])?;
    let altitude = i64::from(altitude) - SEA_LEVEL_CM;
    let sign = if altitude < 0 { "-" } else { "" };
    let altitude = altitude.unsigned_abs();
    shown += &format!(" {sign}{}.{:02}m", altitude / 100, altitude % 100);
    for extent in [size, horizontal, vertical] {
        let (mantissa, power) = (u64::from(extent >> 4), u32::from(extent & 0xf));
        if mantissa > 9 || power > 9 || (mantissa == 0 && power > 0) {
            return None;
        }
        let value = mantissa * 10_u64.pow(power);
        shown += &format!(" {}.{:02}m", value / 100, value % 100);
    }
    Some(shown)
}

fn show_angle(angle: u32, most: u32, [positive, negative]: [&str; 2]) -> Option<String> {
    let (sign, total) = if angle >= ZERO {
        (positive, angle - ZERO)
    } else {
        (negative, ZERO - angle)
    };
    if total > most * DEGREE {
        return None;
    }
    let (degrees, minutes, rest) = (total / DEGREE, total % DEGREE / MINUTE, total % MINUTE);
    Some(format!(
        "{degrees} {minutes} {}.{:03} {sign}",
        rest / SECOND,
        rest % SECOND
    ))
}
