//! What is measured, by name; the table is the one source of columns and of what the sidecar says of them.

/// One measure.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// The column's name.
    pub name: &'static str,
    /// Its name in words.
    pub long_name: &'static str,
    /// How it is defined.
    pub description: &'static str,
    /// Its unit; "1" for plain numbers and shares.
    pub units: &'static str,
}

const fn measure(
    name: &'static str,
    long_name: &'static str,
    description: &'static str,
    units: &'static str,
) -> Measure {
    Measure { name, long_name, description, units }
}

/// Every measure, in the order of the columns.
pub const MEASURES: [Measure; 65] = [
    measure(
        "not_finite",
        "Voxels without a value",
        "share of voxels that are NaN or infinite; they count as the least value",
        "1",
    ),
    measure(
        "clipped",
        "Clipped voxels",
        "share of the region's voxels that have exactly its greatest value, but for one",
        "1",
    ),
    measure("spacing_max", "Largest voxel edge", "greatest of the three distances between voxels", "mm"),
    measure("anisotropy", "Voxel anisotropy", "greatest over least distance between voxels", "1"),
    measure("field_x", "Field of view, left to right", "voxels times spacing", "mm"),
    measure("field_y", "Field of view, back to front", "voxels times spacing", "mm"),
    measure("field_z", "Field of view, bottom to top", "voxels times spacing", "mm"),
    measure(
        "extent_x",
        "Extent, left to right",
        "of the brain (of the head where there is neither a mask nor skull-stripping)",
        "mm",
    ),
    measure("extent_y", "Extent, back to front", "as extent_x", "mm"),
    measure("extent_z", "Extent, bottom to top", "as extent_x", "mm"),
    measure(
        "extent_off",
        "Extent beyond adult brains",
        "greatest distance of an extent from 126-146, 158-193 and 124-164 mm; n/a for heads",
        "mm",
    ),
    measure("volume", "Volume", "of the brain, or of the head, as extent_x", "mL"),
    measure(
        "volume_off",
        "Volume beyond adult brains",
        "distance from 900-1900 mL, over 900 mL; n/a for heads",
        "1",
    ),
    measure(
        "cut_left",
        "Cut on the left",
        "area in which brain (or head) touches this face of the field of view",
        "cm^2",
    ),
    measure("cut_right", "Cut on the right", "as cut_left", "cm^2"),
    measure("cut_back", "Cut at the back", "as cut_left", "cm^2"),
    measure("cut_front", "Cut in front", "as cut_left", "cm^2"),
    measure("cut_bottom", "Cut at the bottom", "as cut_left; a head goes on as the neck there", "cm^2"),
    measure("cut_top", "Cut at the top", "as cut_left", "cm^2"),
    measure("cut_area", "Cut area", "sum of the six, for a head without the bottom", "cm^2"),
    measure(
        "missing_slices",
        "Missing slices",
        "share of slices within the extent whose mean is under a tenth of the usual slice's, along the worst axis",
        "1",
    ),
    measure(
        "asymmetry",
        "Left-right asymmetry",
        "1 - Dice overlap of the region with its mirror image about its centre",
        "1",
    ),
    measure("components", "Parts", "connected parts of at least 0.1 mL", "1"),
    measure(
        "apart",
        "Apart from the largest part",
        "share of the region outside its largest connected part",
        "1",
    ),
    measure("holes", "Holes", "background that the region encloses", "mL"),
    measure(
        "snr_csf",
        "SNR of fluid",
        "mean over SD of the darkest of three normal distributions fitted to the region",
        "1",
    ),
    measure("snr_gm", "SNR of grey matter", "as snr_csf, the middle one", "1"),
    measure("snr_wm", "SNR of white matter", "as snr_csf, the brightest one", "1"),
    measure("fraction_csf", "Fraction of fluid", "weight of the darkest normal distribution", "1"),
    measure("fraction_gm", "Fraction of grey matter", "weight of the middle one", "1"),
    measure("fraction_wm", "Fraction of white matter", "weight of the brightest one", "1"),
    measure("contrast", "Contrast of white and grey matter", "(white - grey) / white, of the means", "1"),
    measure("contrast_csf", "Contrast of grey matter and fluid", "(grey - fluid) / white, of the means", "1"),
    measure(
        "cjv",
        "Coefficient of joint variation",
        "(SD white + SD grey) / (mean white - mean grey); low is good (MRIQC, Ganzetti 2016)",
        "1",
    ),
    measure(
        "cnr",
        "Contrast to noise",
        "(mean white - mean grey) / sqrt(SD air^2 + SD white^2 + SD grey^2) (MRIQC, Magnotta 2006); n/a without air",
        "1",
    ),
    measure(
        "cnr_tissue",
        "Contrast to noise, without air",
        "(mean white - mean grey) / sqrt(SD white^2 + SD grey^2)",
        "1",
    ),
    measure(
        "wm2max",
        "White matter to maximum",
        "mean of white matter over the 99.95th percentile of the image (MRIQC); of the region when skull-stripped",
        "1",
    ),
    measure(
        "efc",
        "Entropy focus criterion",
        "entropy of the image over the most it can be (MRIQC, Atkinson 1997): 1 all alike, 0 one voxel; of the region when skull-stripped",
        "1",
    ),
    measure("kurtosis", "Kurtosis", "excess kurtosis of the region's intensities", "1"),
    measure("variation", "Variation", "SD over mean of the region's intensities", "1"),
    measure(
        "noise",
        "Noise in the brain",
        "SD of the finest Haar wavelet (median estimate) over the mean of white matter",
        "1",
    ),
    measure(
        "air_sd",
        "SD of the air",
        "over the mean of white matter; air more than 8 mm from the head and less than 100 mm below its top; n/a when skull-stripped or padded",
        "1",
    ),
    measure("air_mean", "Mean of the air", "over the mean of white matter", "1"),
    measure("air_blank", "Blank air", "share of the air that has exactly its median value", "1"),
    measure(
        "air_structure",
        "Structure in the air",
        "SD of what lasts over 3x3x3 voxels of air, over the mean of white matter: ghosts, ringing, wrapped tissue",
        "1",
    ),
    measure(
        "air_coherence",
        "Coherence of the air",
        "share of the air's variance that lasts over 3x3x3 voxels",
        "1",
    ),
    measure(
        "snr_dietrich",
        "SNR by Dietrich",
        "0.655 mean white / MAD of the air (MRIQC, Dietrich 2007); n/a when the MAD is 0",
        "1",
    ),
    measure(
        "fber",
        "Foreground to background energy",
        "squared ratio of the medians of head and air (MRIQC, Shehzad 2015); n/a unless the head is whole",
        "1",
    ),
    measure(
        "qi1",
        "Artefacts in the air",
        "share of the air in bright patches (MRIQC's QI1, Mortamet 2009); n/a unless the head is whole",
        "1",
    ),
    measure(
        "fwhm_x",
        "Smoothness, left to right",
        "full width at half maximum of the normal kernel that makes neighbours as alike (AFNI 3dFWHMx)",
        "mm",
    ),
    measure("fwhm_y", "Smoothness, back to front", "as fwhm_x", "mm"),
    measure("fwhm_z", "Smoothness, bottom to top", "as fwhm_x", "mm"),
    measure("fwhm", "Smoothness", "geometric mean of the three", "mm"),
    measure("fwhm_ratio", "Anisotropy of smoothness", "greatest over least of the three", "1"),
    measure(
        "gradient_median",
        "Median gradient",
        "median gradient in the region over the mean of white matter",
        "1/mm",
    ),
    measure(
        "sharpness",
        "Sharpness",
        "95th percentile of the gradient over the mean of white matter",
        "1/mm",
    ),
    measure("gradient_variation", "Variation of the gradient", "SD over mean of the gradient", "1"),
    measure(
        "gradient_entropy",
        "Entropy of the gradient",
        "of its histogram in 32 bins up to half of white matter per mm, over the most it can be",
        "1",
    ),
    measure(
        "fine_x",
        "Fine waves, left to right",
        "share of the power beyond half the finest wave's frequency, in the mean spectrum of lines through the region",
        "1",
    ),
    measure("fine_y", "Fine waves, back to front", "as fine_x", "1"),
    measure("fine_z", "Fine waves, bottom to top", "as fine_x", "1"),
    measure(
        "comb",
        "Comb in the spectrum",
        "mean distance of the log power from the median of its neighbours, along the worst axis: ghosts",
        "1",
    ),
    measure(
        "spike",
        "Spike in the spectrum",
        "greatest rise of the log power over the median of its neighbours, along the worst axis",
        "1",
    ),
    measure(
        "bias",
        "Bias field",
        "SD of the logarithm of a second-order field fitted to grey and white matter",
        "1",
    ),
    measure("bias_range", "Range of the bias field", "its 95th over its 5th percentile", "1"),
];

/// The measures of one scan; absent where they are undefined.
#[derive(Clone, Debug, PartialEq)]
pub struct Measures([Option<f64>; MEASURES.len()]);

impl Default for Measures {
    fn default() -> Self {
        Measures([None; MEASURES.len()])
    }
}

impl Measures {
    /// The measure `name`, where it is defined.
    ///
    /// # Panics
    /// When [`MEASURES`] has no such name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0[index(name)]
    }
    /// The measure of that place in [`MEASURES`].
    pub fn at(&self, index: usize) -> Option<f64> {
        self.0[index]
    }
    /// Keeps a value; one that is not finite is undefined.
    pub(super) fn set(&mut self, name: &str, value: f64) {
        self.0[index(name)] = value.is_finite().then_some(value);
    }
}

fn index(name: &str) -> usize {
    MEASURES.iter().position(|m| m.name == name).unwrap_or_else(|| panic!("no measure is called {name}"))
}
