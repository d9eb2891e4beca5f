//! Renders SVG images. Pure.

use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree, roxmltree};

use super::Rejected;

/// The longer side of a rendered image, in pixels.
const SIDE: f32 = 1_600.0;
/// Elements that cannot be rendered, because no fonts are available and other files are not read.
const UNSUPPORTED: [&str; 3] = ["text", "image", "foreignObject"];

/// Renders an image as PNG on a white background.
///
/// # Errors
/// If it is not SVG, or has text or images.
pub(super) fn render(bytes: &[u8]) -> Result<Vec<u8>, Rejected> {
    let text = std::str::from_utf8(bytes).map_err(|_| Rejected::damaged())?;
    // A document type definition, which many programs write, is allowed. The number of entities that are expanded is limited.
    let parsing = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let document = roxmltree::Document::parse_with_options(text, parsing).map_err(|_| Rejected::damaged())?;
    let elements = document.descendants().filter(roxmltree::Node::is_element);
    if elements.map(|element| element.tag_name().name()).any(|name| UNSUPPORTED.contains(&name)) {
        return Err(Rejected::unsupported("Text and images in SVG are not rendered."));
    }
    let tree = Tree::from_xmltree(&document, &Options::default()).map_err(|_| Rejected::damaged())?;
    let size = tree.size();
    let scale = SIDE / size.width().max(size.height());
    let scaled = size.to_int_size().scale_by(scale).ok_or_else(Rejected::damaged)?;
    let mut pixels = Pixmap::new(scaled.width(), scaled.height()).ok_or_else(Rejected::damaged)?;
    pixels.fill(Color::WHITE);
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixels.as_mut());
    pixels.encode_png().map_err(|_| Rejected::damaged())
}
