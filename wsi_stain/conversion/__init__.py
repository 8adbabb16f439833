"""Conversion of one slide: request, plan, job, blocks, certificate, file, record."""
