//! Embeddings in memory, compared exactly and in little time. Pure.
//!
//! A stored embedding is scaled to length 1 and to whole numbers of 16 bits, which are divided into a high and a low byte.
//! A search reads only the high bytes of all vectors, which are contiguous. The error of such a score has a known bound. The
//! few vectors that may be among the best are then compared with both bytes. All sums are of whole numbers, so a score is the
//! same on every machine, in whatever order vectors are stored.

use std::ops::Range;

/// Maximum number of dimensions of an embedding: more than that of any known model.
pub const DIMENSIONS_MAX: usize = 64 * 1024;
/// Largest scaled value: its high byte must fit into 8 bits after rounding.
const VALUE_MAX: f32 = 32_512.0;
/// Number of values that are multiplied at a time. Vectors are padded with zeros to a multiple of it.
const BLOCK: usize = 32;
/// Number of values whose products are summed in 32 bits: each is at most 128 · 32,767.
const PART: usize = 512;
/// Allowance for rounding in the bound of an error.
const ROUNDING: f32 = 1.001;

/// An embedding of a query, scaled to whole numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryVector {
    dimensions: usize,
    /// Padded to a multiple of [`BLOCK`].
    values: Vec<i16>,
    /// The length of one unit of `values`.
    scale: f32,
}

impl QueryVector {
    /// Scales an embedding. Returns `None` if it has no direction: it is empty, zero or not finite.
    #[must_use]
    pub fn new(embedding: &[f32]) -> Option<Self> {
        let unit = normalized(embedding.to_vec())?;
        let max = unit.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        let per_unit = f32::from(i16::MAX) / max;
        #[expect(clippy::cast_possible_truncation, reason = "at most i16::MAX")]
        let mut values: Vec<i16> = unit.iter().map(|value| (value * per_unit).round() as i16).collect();
        values.resize(values.len().next_multiple_of(BLOCK), 0);
        Some(Self { dimensions: unit.len(), values, scale: 1.0 / per_unit })
    }

    /// Returns the number of dimensions.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Returns the embedding, scaled to length 1.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        self.values[..self.dimensions].iter().map(|value| f32::from(*value) * self.scale).collect()
    }

    /// Returns the score of an embedding that [`to_f16_bytes`] encoded, which is the same as in an index. `None`: it cannot
    /// be compared with this one.
    #[must_use]
    pub fn score(&self, embedding: &[u8]) -> Option<f32> {
        let mut vectors = Vectors::new(self.dimensions);
        vectors.push(embedding);
        (vectors.rows() == 1).then(|| vectors.score(0, self))
    }
}

/// A vector as it is stored in a block: what is needed to estimate its score.
pub(super) struct StoredRow<'a> {
    /// The chunk in its segment.
    pub(super) chunk: u32,
    scale: f32,
    error: f32,
    high: &'a [u8],
}

impl<'a> StoredRow<'a> {
    /// Reads the rows that [`Vectors::write_row`] wrote. The last one is left out if it is incomplete.
    pub(super) fn read_all(block: &'a [u8], dimensions: usize) -> impl Iterator<Item = Self> {
        block.chunks_exact(row_bytes(dimensions)).filter_map(|row| {
            let (chunk, row) = row.split_first_chunk()?;
            let (scale, row) = row.split_first_chunk()?;
            let (error, high) = row.split_first_chunk()?;
            let (scale, error) = (f32::from_le_bytes(*scale), f32::from_le_bytes(*error));
            Some(Self { chunk: u32::from_le_bytes(*chunk), scale, error, high })
        })
    }

    /// Returns the estimated score, and its largest error.
    pub(super) fn estimate(&self, query: &QueryVector) -> (f32, f32) {
        let widen = |value| i16::from(i8::from_le_bytes([value]));
        let sum = pulp::Arch::new().dispatch(Product { left: self.high, right: &query.values, widen });
        #[expect(clippy::cast_precision_loss, reason = "less than the error of the estimate")]
        let score = sum as f32 * (256.0 * query.scale * self.scale);
        (score, self.error)
    }
}

/// Returns the size of a stored row, in bytes.
pub(super) fn row_bytes(dimensions: usize) -> usize {
    12 + dimensions.next_multiple_of(BLOCK)
}

/// Encodes an embedding for storage: as little-endian 16-bit floats, scaled to length 1.
///
/// Returns `None` if it has no direction: it is empty, zero or not finite.
#[must_use]
pub fn to_f16_bytes(embedding: &[f32]) -> Option<Vec<u8>> {
    let unit = normalized(embedding.to_vec())?;
    Some(unit.into_iter().flat_map(|value| f16_bits(value).to_le_bytes()).collect())
}

/// Decodes an embedding that [`to_f16_bytes`] encoded.
#[must_use]
pub fn from_f16_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bits| f32_of_f16(u16::from_le_bytes(*bits))).collect()
}

/// Returns the bits of the nearest 16-bit float of a value of at most 1.
fn f16_bits(value: f32) -> u16 {
    let sign = u16::from(value.is_sign_negative()) << 15;
    let value = value.abs().min(1.0);
    // Values below 2^-14 have a fixed step of 2^-24; above, the step doubles with each power of two.
    let exponent = value.to_bits() >> 23;
    let step_exponent = exponent.max(127 - 14) - 10;
    let steps = value / f32::from_bits(step_exponent << 23);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2,048 steps")]
    let steps = steps.round_ties_even() as u32;
    // A value of 1,024 steps or more has an implicit leading bit, which is carried into the exponent.
    let power = step_exponent + 10 - (127 - 14);
    let bits = (power << 10) + steps;
    sign | u16::try_from(bits).unwrap_or(0)
}

/// Returns the value of the bits of a 16-bit float.
fn f32_of_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10) & 0x1f, u32::from(bits) & 0x3ff);
    match exponent {
        0 => f32::from_bits(sign | 0x3380_0000) * f32::from(bits & 0x3ff),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// Scales a vector to length 1. Returns `None` if it has no direction.
fn normalized(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let square: f64 = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    if !square.is_finite() || square <= 0.0 || vector.len() > DIMENSIONS_MAX {
        return None;
    }
    let factor = 1.0 / square.sqrt();
    for value in &mut vector {
        #[expect(clippy::cast_possible_truncation, reason = "at most 1")]
        let scaled = (f64::from(*value) * factor) as f32;
        *value = scaled;
    }
    vector.iter().any(|value| *value != 0.0).then_some(vector)
}

/// The score of a row without vector: less than that of any vector.
pub(super) const ABSENT: f32 = -1.5;

/// Vectors of one number of dimensions, by row.
#[derive(Debug, Clone, Default)]
pub(super) struct Vectors {
    dimensions: usize,
    /// Length of a row in bytes: the number of dimensions, padded to a multiple of [`BLOCK`].
    stride: usize,
    high: Vec<i8>,
    low: Vec<i8>,
    /// The length of one unit, for each row; 0 if it has no vector.
    scales: Vec<f32>,
    /// The largest error of a score from the high bytes, for each row.
    errors: Vec<f32>,
    error_max: f32,
}

impl Vectors {
    pub(super) fn new(dimensions: usize) -> Self {
        Self { dimensions, stride: dimensions.next_multiple_of(BLOCK), ..Self::default() }
    }

    pub(super) fn rows(&self) -> u32 {
        u32::try_from(self.scales.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Reports whether a stored embedding can be added.
    pub(super) fn accepts(dimensions: usize, bytes: &[u8]) -> bool {
        bytes.len() == 2 * dimensions && normalized(from_f16_bytes(bytes)).is_some()
    }

    /// Adds a stored embedding as the next row, if it is accepted.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let Some(unit) = normalized(from_f16_bytes(bytes)).filter(|unit| unit.len() == self.dimensions) else { return };
        let max = unit.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        let scale = max / VALUE_MAX;
        let mut low_square = 0.0_f32;
        for value in unit {
            #[expect(clippy::cast_possible_truncation, reason = "at most VALUE_MAX")]
            let value = (value / scale).round() as i32;
            let high = (value + 128) >> 8;
            let low = value - (high << 8);
            self.high.push(i8::try_from(high).unwrap_or(i8::MAX));
            self.low.push(i8::try_from(low).unwrap_or(i8::MAX));
            #[expect(clippy::cast_precision_loss, reason = "at most 128")]
            let low = low as f32;
            low_square += low * low;
        }
        self.high.resize(self.high.len().next_multiple_of(self.stride), 0);
        self.low.resize(self.low.len().next_multiple_of(self.stride), 0);
        self.scales.push(scale);
        let error = scale * low_square.sqrt() * ROUNDING;
        self.errors.push(error);
        self.error_max = self.error_max.max(error);
    }

    /// Adds the row of a chunk without vector.
    pub(super) fn push_absent(&mut self) {
        self.high.resize(self.high.len() + self.stride, 0);
        self.low.resize(self.low.len() + self.stride, 0);
        self.scales.push(0.0);
        self.errors.push(0.0);
    }

    /// Reports whether a row has a vector.
    pub(super) fn has(&self, row: u32) -> bool {
        self.scales[row as usize] > 0.0
    }

    /// Adds rows of other vectors of the same number of dimensions.
    pub(super) fn extend(&mut self, other: &Self, rows: Range<u32>) {
        let rows = rows.start as usize..rows.end as usize;
        let bytes = rows.start * self.stride..rows.end * self.stride;
        self.high.extend_from_slice(&other.high[bytes.clone()]);
        self.low.extend_from_slice(&other.low[bytes]);
        self.scales.extend_from_slice(&other.scales[rows.clone()]);
        self.errors.extend_from_slice(&other.errors[rows]);
        self.error_max = self.error_max.max(other.error_max);
    }

    pub(super) fn reserve_exact(&mut self, rows: usize) {
        self.high.reserve_exact(rows * self.stride);
        self.low.reserve_exact(rows * self.stride);
        self.scales.reserve_exact(rows);
        self.errors.reserve_exact(rows);
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.high.shrink_to_fit();
        self.low.shrink_to_fit();
        self.scales.shrink_to_fit();
        self.errors.shrink_to_fit();
    }

    /// Returns the allocated memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.high.capacity() + self.low.capacity() + 4 * (self.scales.capacity() + self.errors.capacity())
    }

    /// Writes the scores of rows from their high bytes to `scores`, which has a place for each. That of a row without vector is
    /// [`ABSENT`].
    pub(super) fn estimate(&self, rows: Range<u32>, query: &QueryVector, scores: &mut [f32]) {
        let (start, end) = (rows.start as usize, rows.end as usize);
        let vectors = self.high[start * self.stride..end * self.stride].chunks_exact(self.stride);
        let factor = 256.0 * query.scale;
        let rows = scores.iter_mut().zip(vectors).zip(&self.scales[start..end]);
        pulp::Arch::new().dispatch(Estimates { rows, values: &query.values, factor });
    }

    /// Returns how many rows have about this size, at least one.
    pub(super) fn rows_of_bytes(&self, bytes: usize) -> u32 {
        u32::try_from(bytes / self.stride.max(1)).unwrap_or(u32::MAX).max(1)
    }

    /// Appends a row and its chunk, as [`StoredRow::read_all`] reads them.
    pub(super) fn write_row(&self, row: u32, chunk: u32, block: &mut Vec<u8>) {
        let row = row as usize;
        block.extend_from_slice(&chunk.to_le_bytes());
        block.extend_from_slice(&self.scales[row].to_le_bytes());
        block.extend_from_slice(&self.errors[row].to_le_bytes());
        let high = &self.high[row * self.stride..(row + 1) * self.stride];
        block.extend(high.iter().map(|value| value.to_le_bytes()[0]));
    }

    /// Returns the largest error of the estimate of a row.
    pub(super) fn error(&self, row: u32) -> f32 {
        self.errors[row as usize]
    }

    /// Returns the largest error of the estimates of all rows.
    pub(super) fn error_max(&self) -> f32 {
        self.error_max
    }

    /// Returns the score of a row: the cosine of the angle between it and the query.
    pub(super) fn score(&self, row: u32, query: &QueryVector) -> f32 {
        let start = row as usize * self.stride;
        let bytes = start..start + self.stride;
        let product = |left| pulp::Arch::new().dispatch(Product { left, right: &query.values, widen: i16::from });
        let (high, low) = (product(&self.high[bytes.clone()]), product(&self.low[bytes]));
        let unit = f64::from(self.scales[row as usize]) * f64::from(query.scale);
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a score between -1 and 1")]
        let score = ((256 * high + low) as f64 * unit) as f32;
        score.clamp(-1.0, 1.0)
    }
}

/// [`product`], to be compiled for each instruction set. A closure would not do: it is compiled for the oldest one only, unless
/// the compiler happens to inline it.
struct Product<'a, T, W> {
    left: &'a [T],
    right: &'a [i16],
    widen: W,
}

impl<T: Copy, W: Fn(T) -> i16> pulp::NullaryFnOnce for Product<'_, T, W> {
    type Output = i64;

    #[expect(clippy::inline_always, reason = "compiled for the instruction set of its caller")]
    #[inline(always)]
    fn call(self) -> i64 {
        product(self.left, self.right, self.widen)
    }
}

/// Writes estimates. See [`Product`].
struct Estimates<'a, R> {
    /// For each row, the place of the score, the vector, and the length of one unit.
    rows: R,
    values: &'a [i16],
    factor: f32,
}

impl<'a, R: Iterator<Item = ((&'a mut f32, &'a [i8]), &'a f32)>> pulp::NullaryFnOnce for Estimates<'_, R> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "compiled for the instruction set of its caller")]
    #[inline(always)]
    fn call(self) {
        for ((score, vector), scale) in self.rows {
            #[expect(clippy::cast_precision_loss, reason = "less than the error of the estimate")]
            let sum = product(vector, self.values, i16::from) as f32;
            *score = if *scale > 0.0 { sum * (self.factor * scale) } else { ABSENT };
        }
    }
}

/// Returns the sum of the products of two vectors of equal length, which is a multiple of [`BLOCK`].
///
/// The inner loop has a fixed number of products, and its sums have 32 bits, so that the compiler uses the instruction that
/// multiplies pairs of 16-bit numbers and adds them (`pmaddwd`). Callers select the widest form that the processor has.
#[expect(clippy::inline_always, reason = "compiled for the instruction set of its caller")]
#[inline(always)]
fn product<T: Copy>(left: &[T], right: &[i16], widen: impl Fn(T) -> i16) -> i64 {
    let mut sum = 0;
    for (left, right) in left.chunks(PART).zip(right.chunks(PART)) {
        let mut of_part = 0;
        for (left, right) in left.as_chunks::<BLOCK>().0.iter().zip(right.as_chunks::<BLOCK>().0) {
            let mut widened = [0_i16; BLOCK];
            for (widened, value) in widened.iter_mut().zip(left) {
                *widened = widen(*value);
            }
            for (left, right) in widened.iter().zip(right) {
                of_part += i32::from(*left) * i32::from(*right);
            }
        }
        sum += i64::from(of_part);
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cosine(left: &[f32], right: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        dot(left, right) / (dot(left, left).sqrt() * dot(right, right).sqrt())
    }

    #[test]
    fn floats_of_16_bits_are_read_as_ieee_754_defines() {
        let cases = [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xbc00, -1.0),
            (0x3555, 0.333_251_95),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
        ];
        for (bits, value) in cases {
            assert_eq!(f32_of_f16(bits).to_bits(), f32::to_bits(value), "{bits:x}");
            assert_eq!(f16_bits(value), bits, "{value}");
        }
        assert!(f32_of_f16(0x7c00).is_infinite() && f32_of_f16(0x7e00).is_nan());
        assert_eq!(f16_bits(1.0 - f32::EPSILON), 0x3c00);
        assert_eq!(f16_bits(1e-10), 0);
    }

    #[test]
    fn every_16_bit_float_up_to_1_is_encoded_as_it_was() {
        for bits in (0..=0x3c00).chain(0x8000..=0xbc00) {
            assert_eq!(f16_bits(f32_of_f16(bits)), bits);
        }
    }

    #[test]
    fn an_embedding_without_direction_is_not_accepted() {
        assert_eq!(QueryVector::new(&[]), None);
        assert_eq!(QueryVector::new(&[0.0; 8]), None);
        assert_eq!(QueryVector::new(&[f32::NAN, 1.0]), None);
        assert_eq!(to_f16_bytes(&[f32::INFINITY, 1.0]), None);
        assert!(!Vectors::accepts(2, &[0, 0, 0, 0]) && !Vectors::accepts(2, &[0, 0x3c]));
        assert!(Vectors::accepts(2, &to_f16_bytes(&[3.0e30, 4.0e30]).unwrap()));
    }

    proptest! {
        #[test]
        fn a_score_is_the_cosine_and_the_estimate_is_within_its_error(
            (row, query) in (1_usize..700).prop_flat_map(|dimensions| {
                let value = prop_oneof![8 => -1.0_f32..1.0, 1 => Just(1.0_f32), 1 => Just(0.0_f32), 1 => -1e-4_f32..1e-4];
                let vector = || prop::collection::vec(value.clone(), dimensions);
                (vector(), vector())
            }),
        ) {
            let (Some(stored), Some(scaled)) = (to_f16_bytes(&row), QueryVector::new(&query)) else { return Ok(()) };
            let mut vectors = Vectors::new(row.len());
            vectors.push(&stored);
            let exact = cosine(&from_f16_bytes(&stored), &query);
            let mut estimate = [0.0];
            vectors.estimate(0..1, &scaled, &mut estimate);

            let score = vectors.score(0, &scaled);

            prop_assert!((f64::from(score) - exact).abs() < 2e-4, "{score} is not {exact}");
            prop_assert!((estimate[0] - score).abs() <= vectors.error(0) + 1e-6, "{} {score} {}", estimate[0], vectors.error(0));
        }
    }

    #[test]
    fn products_of_the_largest_values_do_not_overflow() {
        for dimensions in [1, 2, 384, 1_536, 4_096, DIMENSIONS_MAX] {
            let mut vectors = Vectors::new(dimensions);
            vectors.push(&to_f16_bytes(&vec![1.0; dimensions]).unwrap());
            let query = QueryVector::new(&vec![1.0; dimensions]).unwrap();

            let score = vectors.score(0, &query);

            assert!((score - 1.0).abs() < 1e-3, "{dimensions}: {score}");
        }
    }
}
