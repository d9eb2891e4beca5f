//! Scales images down before they are sent to a model. Pure.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, ImageResult, Limits};

/// Maximum number of pixels of an image that is scaled: more than most cameras have. A file of a few kilobytes can have
/// billions of pixels, which would have to be in memory.
const PIXELS_MAX: u64 = 50_000_000;
/// Maximum memory of a decoded image, in bytes.
const DECODED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Maximum number of pixels of an image that is scaled with a filter. The filter needs up to 16 bytes more for each pixel;
/// larger images are scaled by averages, which need no memory, and look the same at these sizes.
const FILTERED_PIXELS_MAX: u64 = 16_000_000;
/// Quality of scaled photos, from 1 to 100.
const JPEG_QUALITY: u8 = 90;

/// What an image has become.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scaled {
    /// The image is small enough, or cannot be decoded.
    Unchanged,
    /// A smaller image.
    Smaller {
        /// Its media type.
        media_type: &'static str,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// The image has too many pixels to be decoded.
    TooManyPixels,
}

/// Scales an image to at most `side_max` pixels on its longer side, and turns it as its metadata say, because these are
/// lost. Of an animation, only the first frame remains.
///
/// Photos become JPEG; graphics, and images with transparency, become PNG.
pub(super) fn scale_down(bytes: &[u8], side_max: u32) -> Scaled {
    match try_scale(bytes, side_max) {
        Ok(Some((media_type, bytes))) => Scaled::Smaller { media_type, bytes },
        Err(ImageError::Limits(_)) => Scaled::TooManyPixels,
        Ok(None) | Err(_) => Scaled::Unchanged,
    }
}

/// Returns the smaller image, or `None` if the image is small enough.
fn try_scale(bytes: &[u8], side_max: u32) -> ImageResult<Option<(&'static str, Vec<u8>)>> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    reader.limits(limits);
    let format = reader.format();
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if width.max(height) <= side_max {
        return Ok(None);
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > PIXELS_MAX || decoder.total_bytes() > DECODED_BYTES_MAX {
        return Err(ImageError::Limits(image::error::LimitError::from_kind(
            image::error::LimitErrorKind::DimensionError,
        )));
    }
    // An image with damaged metadata is not turned.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder)?;
    let mut scaled = if pixels > FILTERED_PIXELS_MAX {
        decoded.thumbnail(side_max, side_max)
    } else {
        decoded.resize(side_max, side_max, FilterType::Triangle)
    };
    drop(decoded);
    scaled.apply_orientation(orientation);
    encode(scaled, format).map(Some)
}

fn encode(image: DynamicImage, format: Option<ImageFormat>) -> ImageResult<(&'static str, Vec<u8>)> {
    let mut bytes = Vec::new();
    // Decoders return an alpha channel also for images that do not use it.
    let image = if image.color().has_alpha() {
        let image = image.into_rgba8();
        if image.pixels().any(|pixel| pixel.0[3] != u8::MAX) {
            image.write_with_encoder(PngEncoder::new(&mut bytes))?;
            return Ok(("image/png", bytes));
        }
        DynamicImage::from(image).into_rgb8()
    } else {
        image.into_rgb8()
    };
    if let Some(ImageFormat::Jpeg | ImageFormat::WebP) = format {
        image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
        return Ok(("image/jpeg", bytes));
    }
    image.write_with_encoder(PngEncoder::new(&mut bytes))?;
    Ok(("image/png", bytes))
}

#[cfg(test)]
mod tests {
    use image::codecs::gif::GifEncoder;
    use image::{Frame, ImageEncoder as _, Rgba, RgbaImage};

    use super::*;

    const FORMATS: [ImageFormat; 4] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP];

    fn pixels(width: u32, height: u32, alpha: u8) -> RgbaImage {
        RgbaImage::from_pixel(width, height, Rgba([200, 0, 0, alpha]))
    }

    fn file(image: RgbaImage, format: ImageFormat) -> Vec<u8> {
        let image = DynamicImage::from(image);
        let image = if format == ImageFormat::Jpeg { image.into_rgb8().into() } else { image };
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Returns the media type, the size, and the first pixel of a scaled image.
    fn scaled(bytes: &[u8], side_max: u32) -> (&'static str, (u32, u32), [u8; 4]) {
        let Scaled::Smaller { media_type, bytes } = scale_down(bytes, side_max) else { panic!("not scaled") };
        let format = ImageFormat::from_mime_type(media_type).unwrap();
        let image = image::load_from_memory_with_format(&bytes, format).unwrap().into_rgba8();
        (media_type, image.dimensions(), image.get_pixel(0, 0).0)
    }

    #[test]
    fn a_large_image_is_scaled_and_keeps_its_proportions() {
        for (format, expected) in FORMATS.into_iter().zip(["image/png", "image/jpeg", "image/png", "image/jpeg"]) {
            let (media_type, size, pixel) = scaled(&file(pixels(400, 100, 255), format), 100);

            assert_eq!((media_type, size), (expected, (100, 25)), "{format:?}");
            assert!(pixel[0].abs_diff(200) < 8 && pixel[1] < 8, "{format:?}: {pixel:?}");
        }
        assert_eq!(scaled(&file(pixels(1, 5_000, 255), ImageFormat::Png), 64).1, (1, 64));
        // Scaled by averages.
        assert_eq!(scaled(&file(pixels(8_000, 2_500, 255), ImageFormat::Png), 100).1, (100, 31));
    }

    #[test]
    fn transparency_is_kept() {
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            assert_eq!(scaled(&file(pixels(300, 200, 128), format), 30), ("image/png", (30, 20), [200, 0, 0, 128]));
        }
    }

    #[test]
    fn an_image_that_is_small_enough_or_cannot_be_decoded_is_unchanged() {
        for format in FORMATS {
            let bytes = file(pixels(100, 40, 255), format);
            assert_eq!(scale_down(&bytes, 100), Scaled::Unchanged, "{format:?}");
            assert_eq!(scale_down(&bytes[..bytes.len().min(20)], 10), Scaled::Unchanged, "{format:?} cut off");
        }
        assert_eq!(scale_down(b"\x89PNG\r\n\x1a\n", 10), Scaled::Unchanged);
        assert_eq!(scale_down(b"words", 10), Scaled::Unchanged);
        assert_eq!(scale_down(b"", 10), Scaled::Unchanged);
    }

    #[test]
    fn only_the_first_frame_of_an_animation_remains() {
        let mut bytes = Vec::new();
        let blue = RgbaImage::from_pixel(200, 200, Rgba([0, 0, 200, 255]));
        let mut encoder = GifEncoder::new(&mut bytes);
        encoder.encode_frames([Frame::new(pixels(200, 200, 255)), Frame::new(blue)]).unwrap();
        drop(encoder);

        let (media_type, size, pixel) = scaled(&bytes, 50);

        assert_eq!((media_type, size), ("image/png", (50, 50)));
        assert!(pixel[0] > 190 && pixel[2] < 10, "{pixel:?}");
    }

    #[test]
    fn an_image_is_turned_as_its_metadata_say() {
        // An Exif block whose only entry is the orientation 6: the camera was turned by 90 degrees.
        let mut exif = b"MM\0*\0\0\0\x08\0\x01".to_vec();
        exif.extend(b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0");
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif).unwrap();
        DynamicImage::from(pixels(400, 100, 255)).into_rgb8().write_with_encoder(encoder).unwrap();

        assert_eq!(scaled(&bytes, 100).1, (25, 100));
    }

    #[test]
    fn an_image_with_too_many_pixels_is_not_decoded() {
        // Small files whose headers say 60,000 x 60,000 pixels.
        let size = 60_000_u16;
        let mut gif = file(pixels(9, 9, 255), ImageFormat::Gif);
        gif[6..8].copy_from_slice(&size.to_le_bytes());
        gif[8..10].copy_from_slice(&size.to_le_bytes());
        let mut jpeg = file(pixels(9, 9, 255), ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 7].copy_from_slice(&size.to_be_bytes());
        jpeg[frame + 7..frame + 9].copy_from_slice(&size.to_be_bytes());

        for bytes in [gif, jpeg, png_of_size(60_000, 60_000), png_of_size(u32::MAX >> 1, 1), png_of_size(10_000, 5_001)]
        {
            assert_eq!(scale_down(&bytes, 100), Scaled::TooManyPixels, "{:?}", &bytes[..24]);
        }
        assert_eq!(scale_down(&png_of_size(10_000, 5_000), 100), Scaled::Unchanged, "decoded as far as it goes");
    }

    /// Returns a small PNG whose header says that it has this size.
    fn png_of_size(width: u32, height: u32) -> Vec<u8> {
        let mut png = file(pixels(9, 9, 255), ImageFormat::Png);
        png[16..20].copy_from_slice(&width.to_be_bytes());
        png[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        png
    }

    /// Returns the checksum of a chunk of a PNG.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
        })
    }
}
