"""Conversion of one slide: request, survey, job, estimate, blocks, certificate, file, record."""
