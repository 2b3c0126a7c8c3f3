//! The images that are pulled: many more bytes than any cache of the site may hold.

use crate::{random::Random, support::Image};

const IMAGES: usize = 48;
const LAYER_BYTES_MIN: f64 = 10.0 * 1024.0;
const LAYER_BYTES_MAX: f64 = 24.0 * 1024.0 * 1024.0;

/// Images by popularity.
pub(crate) struct Catalogue {
    images: Vec<Image>,
    weights: Vec<f64>,
}

impl Catalogue {
    /// One to five layers each, of sizes spread evenly over the orders of magnitude. Every fourth image is the next version
    /// of the one before it, with which it shares all layers but one, and every third is an index of platforms.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let mut images: Vec<Image> = Vec::new();
        let mut sizes = Vec::new();
        for number in 0..IMAGES {
            let seed = if number % 4 == 3 {
                sizes.pop();
                sizes.push(layer_bytes(random));
                number - 1
            } else {
                let layers = 1 + random.below(5);
                sizes = (0..layers).map(|_| layer_bytes(random)).collect();
                number
            };
            let image = Image::new(&format!("library/app{number:02}"), "v1")
                // Neighbouring layers have neighbouring seeds.
                .seed(100 * seed as u64)
                .layer_bytes(&sizes);
            images.push(if number % 3 == 0 { image.in_index() } else { image });
        }
        let weights = (1..=IMAGES).map(|rank| 1.0 / rank as f64).collect();
        Self { images, weights }
    }

    pub(crate) fn images(&self) -> &[Image] {
        &self.images
    }

    /// By Zipf's law: the first is pulled twice as often as the second.
    pub(crate) fn choose(&self, random: &mut Random) -> &Image {
        &self.images[random.weighted(&self.weights)]
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.images.iter().map(Image::total_bytes).sum()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between the two sizes above"
)]
fn layer_bytes(random: &mut Random) -> usize {
    (LAYER_BYTES_MIN * (LAYER_BYTES_MAX / LAYER_BYTES_MIN).powf(random.fraction())) as usize
}
