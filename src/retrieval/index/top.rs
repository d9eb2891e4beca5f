//! Finds the largest of many values. Pure.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
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
pub(super) fn keep_first<T>(items: &mut Vec<T>, count: usize, order: impl Fn(&T, &T) -> Ordering) {
    move_first(items, count, order);
    items.truncate(count);
}

/// Moves the first `count` items in an order to the front, unsorted.
pub(super) fn move_first<T>(items: &mut [T], count: usize, order: impl Fn(&T, &T) -> Ordering) {
    if items.len() > count && count > 0 {
        items.select_nth_unstable_by(count - 1, order);
    }
}

/// The largest of the values that were added.
pub(super) struct Largest {
    count: usize,
    /// The smallest of them first.
    values: BinaryHeap<Reverse<Total>>,
}

impl Largest {
    /// Holds at most `count` values.
    pub(super) fn new(count: usize) -> Self {
        Self { count, values: BinaryHeap::new() }
    }

    pub(super) fn add(&mut self, value: f32) {
        self.values.push(Reverse(Total(value)));
        if self.values.len() > self.count {
            self.values.pop();
        }
    }

    /// Returns the value that a further one must exceed to be among the largest; negative infinity if there are fewer than
    /// `count`.
    pub(super) fn bound(&self) -> f32 {
        match self.values.peek() {
            Some(Reverse(Total(value))) if self.values.len() >= self.count => *value,
            _ => f32::NEG_INFINITY,
        }
    }
}

/// A number in the total order of floats.
#[derive(Debug, Clone, Copy)]
struct Total(f32);

impl Ord for Total {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Total {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Total {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Total {}

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
        fn the_bound_is_the_smallest_of_the_largest_values(
            values in prop::collection::vec(-10.0_f32..10.0, 0..60), count in 1_usize..40,
        ) {
            let mut largest = Largest::new(count);
            for value in &values {
                largest.add(*value);
            }

            let mut sorted = values;
            sorted.sort_unstable_by(|left, right| right.total_cmp(left));
            let expected = sorted.get(count - 1).copied().unwrap_or(f32::NEG_INFINITY);
            prop_assert!(largest.bound().total_cmp(&expected).is_eq(), "{} {expected}", largest.bound());
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
