//! Finds the largest of many values. Pure.

use std::ops::Range;

/// Number of classes into which values are divided.
const CLASSES: usize = 4_096;

/// A division of values into classes of equal width, to find a bound without sorting: all values of at least the bound are
/// not much more than those that are needed.
pub(super) struct Classes {
    low: f32,
    per_unit: f32,
}

impl Classes {
    /// Divides the values above `low` and up to `high`.
    pub(super) fn new(low: f32, high: f32) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "4,096")]
        let classes = CLASSES as f32;
        let width = high - low;
        Self { low, per_unit: if width > 0.0 { classes / width } else { 0.0 } }
    }

    /// Returns the class of a value above `low`: higher for larger values.
    pub(super) fn of(&self, value: f32) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates at both ends")]
        let class = ((value - self.low) * self.per_unit) as usize;
        class.min(CLASSES - 1)
    }

    /// Returns the highest class such that it and the higher ones have at least `count` of the values above `low` in the
    /// ranges; 0 if there are fewer.
    pub(super) fn bound(&self, values: &[f32], ranges: &[Range<usize>], count: usize) -> usize {
        let mut sizes = [0_u32; CLASSES];
        for range in ranges {
            for value in &values[range.clone()] {
                if *value > self.low {
                    sizes[self.of(*value)] += 1;
                }
            }
        }
        let mut total = 0;
        for (class, size) in sizes.iter().enumerate().rev() {
            total += *size as usize;
            if total >= count {
                return class;
            }
        }
        0
    }

    /// Returns a value that no value of a class, or of a higher one, is below.
    pub(super) fn start(&self, class: usize) -> f32 {
        if class == 0 || self.per_unit == 0.0 {
            return f32::NEG_INFINITY;
        }
        #[expect(clippy::cast_precision_loss, reason = "less than 4,096")]
        let class = class as f32;
        // One per mille of a class is more than the rounding errors.
        self.low + (class - 1e-3) / self.per_unit
    }
}

/// Keeps the first `count` items in an order, unsorted.
pub(super) fn keep_first<T>(items: &mut Vec<T>, count: usize, order: impl Fn(&T, &T) -> std::cmp::Ordering) {
    if items.len() > count && count > 0 {
        items.select_nth_unstable_by(count - 1, order);
    }
    items.truncate(count);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_classes_from_the_bound_have_the_largest_values(
            values in prop::collection::vec(0.0_f32..10.0, 1..300),
            count in 1_usize..400,
        ) {
            let high = values.iter().copied().fold(0.0, f32::max);
            let classes = Classes::new(0.0, high);
            let ranges = [0..values.len() / 2, values.len() / 2..values.len()];

            let bound = classes.bound(&values, &ranges, count);

            let (above, below): (Vec<f32>, Vec<f32>) =
                values.iter().filter(|value| **value > 0.0).partition(|value| classes.of(**value) >= bound);
            prop_assert!(below.is_empty() || above.len() >= count);
            prop_assert!(above.iter().all(|value| *value >= classes.start(bound)));
            prop_assert!(above.iter().all(|value| below.iter().all(|other| other < value)));
        }

        #[test]
        fn the_first_items_are_kept(mut items in prop::collection::vec(any::<u8>(), 0..50), count in 0_usize..60) {
            let mut sorted = items.clone();
            sorted.sort_unstable();
            sorted.truncate(count);

            keep_first(&mut items, count, Ord::cmp);

            items.sort_unstable();
            prop_assert_eq!(items, sorted);
        }
    }
}
