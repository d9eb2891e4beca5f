//! Image files in prompts: replaces them by data URLs, because model servers cannot read the files.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt as _;

use super::drive::{DriveError, Driver};
use super::scaling::{Scaled, scale_down};
use crate::api::message::{Content, Detail, ImageFile, ImageUrl, Role};
use crate::api::{Message, Scope};

/// Maximum size of an image, in bytes.
///
/// Source: API reference, "Images and vision": the limit of a request.
const IMAGE_BYTES_MAX: u64 = 20 * 1024 * 1024;
/// Maximum number of images that a server scales down at the same time: each needs a processor, and up to 450 MB of memory.
pub(super) const SCALED_AT_ONCE_MAX: usize = 2;
/// If less than this is left in a prompt, in bytes, no image is scaled down for it: the next one may not fit either.
const SCALED_BYTES_MIN: usize = 128 * 1024;
/// Maximum size of the longer side of an image with low detail that is scaled down, in pixels.
///
/// Source: API reference, "Images and vision": with low detail, the model receives 512 by 512 pixels.
const LOW_DETAIL_SIDE_MAX: u32 = 512;

impl Driver {
    /// Replaces the image files in the messages of users by data URLs of at most `bytes_left` bytes together, which is
    /// reduced by their size. An image that cannot be sent is replaced by a text that says so.
    pub(super) async fn load_images(
        &self,
        scope: &Scope,
        messages: Vec<Message>,
        bytes_left: &mut usize,
    ) -> Result<Vec<Message>, DriveError> {
        let mut loaded = messages;
        for message in loaded.iter_mut().filter(|message| message.role == Role::User) {
            for part in &mut message.content {
                let Content::ImageFile { image_file } = part else { continue };
                *part = match self.load_image(scope, image_file, *bytes_left).await? {
                    Ok(url) => {
                        *bytes_left -= url.len();
                        Content::ImageUrl { image_url: ImageUrl { url, detail: image_file.detail } }
                    }
                    Err(reason) => Content::text(format!("[The image {} {reason}.]", image_file.file_id)),
                };
            }
        }
        Ok(loaded)
    }

    /// Returns the data URL of an image, or why it cannot be sent.
    async fn load_image(
        &self,
        scope: &Scope,
        image: &ImageFile,
        bytes_max: usize,
    ) -> Result<Result<String, &'static str>, DriveError> {
        let store = &self.dependencies.store;
        let Some(file) = self.retry(|| store.file(scope, &image.file_id)).await? else {
            return Ok(Err("does not exist"));
        };
        let side_max = self.settings.image_side_max.filter(|_| bytes_max >= SCALED_BYTES_MIN);
        let is_small = encoded_bytes(file.bytes) <= bytes_max as u64;
        if file.bytes > IMAGE_BYTES_MAX || (!is_small && side_max.is_none()) {
            return Ok(Err("is too large to be sent"));
        }
        let failed = |error: &dyn std::error::Error| {
            DriveError::Failed(format!("failed to read the image {}: {error}", image.file_id))
        };
        let content = self.dependencies.files.open_range(scope, &file, None).await.map_err(|error| failed(&error))?;
        let bytes: Vec<u8> = content
            .try_fold(Vec::new(), |mut bytes, more| async move {
                bytes.extend_from_slice(&more);
                Ok(bytes)
            })
            .await
            .map_err(|error| failed(&error))?;
        let Some(media_type) = media_type(&bytes) else {
            return Ok(Err("is not a PNG, JPEG, GIF or WebP image"));
        };
        let bytes = Arc::new(bytes);
        let (media_type, bytes) = match side_max {
            None => (media_type, bytes),
            Some(side_max) => match self.scale_image(bytes.clone(), side_max, image.detail).await? {
                Scaled::Unchanged => (media_type, bytes),
                Scaled::Smaller { media_type, bytes } => (media_type, Arc::new(bytes)),
                Scaled::TooManyPixels => return Ok(Err("has too many pixels to be scaled down")),
            },
        };
        if encoded_bytes(bytes.len() as u64) > bytes_max as u64 {
            return Ok(Err("is too large to be sent"));
        }
        Ok(Ok(format!("data:{media_type};base64,{}", STANDARD.encode(&*bytes))))
    }

    /// Scales an image down on a thread for blocking tasks. Waits while other images are scaled.
    async fn scale_image(&self, bytes: Arc<Vec<u8>>, side_max: u32, detail: Detail) -> Result<Scaled, DriveError> {
        let side_max = match detail {
            Detail::Low => side_max.min(LOW_DETAIL_SIDE_MAX),
            Detail::Auto | Detail::High => side_max,
        };
        let permit = self.scaled_images.clone().acquire_owned().await.map_err(|_| DriveError::Stopping)?;
        let scaling = tokio::task::spawn_blocking(move || {
            // Released when the memory is free, even if the run was cancelled meanwhile.
            let _permit = permit;
            scale_down(&bytes, side_max)
        });
        Ok(scaling.await.unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "failed to scale an image down; sending it unchanged"
            );
            Scaled::Unchanged
        }))
    }
}

/// Returns the size of a data URL with this many bytes of content.
fn encoded_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(3) * 4 + "data:image/jpeg;base64,".len() as u64
}

/// Returns the media type of an image by its first bytes: file names are often wrong.
fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_is_that_of_the_content() {
        assert_eq!(media_type(b"\x89PNG\r\n"), Some("image/png"));
        assert_eq!(media_type(b"\xff\xd8\xff\xe0"), Some("image/jpeg"));
        assert_eq!(media_type(b"GIF89a"), Some("image/gif"));
        assert_eq!(media_type(b"RIFF\0\0\0\0WEBP"), Some("image/webp"));
        assert_eq!(media_type(b"<svg>"), None);
        assert_eq!(media_type(b""), None);
    }
}
