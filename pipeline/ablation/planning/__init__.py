"""From a sweep file to runs that have been checked, named and counted."""
