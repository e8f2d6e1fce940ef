"""MedMAP: modality-aware 3D-MRI vision-language model. Knows neither Flower, nor Opacus, nor files."""
