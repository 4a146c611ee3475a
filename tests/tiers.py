"""The tiers of tests: which tests `make check`, `make test` and `make test-all` run.

`make check` runs the tests of CHECK, `make test` all tests without the marker `full`, and `make test-all` all tests.
A test gets `full` by the table FULL, by `keep` and `keep_first` beside it, or by a decorator; a sibling that `make
test` runs covers the same code.
"""

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent

# By file: a test, how many of its cases `make test` runs (evenly spaced; 0: none), and the sibling that covers the code
# of the other cases.
FULL = """
configs/test_every_config.py
    test_every_key_is_known_and_read                                2  the other configs
configs/test_transfer.py
    test_the_command_of_features_and_classifiers                    0  train/probing, train/test_cli.py
    test_every_stage_of_a_family_has_its_group                      2  the other families
experiments/test_compare.py
    test_any_name_is_shown_in_every_file                            4  the other names
    test_the_command_refuses_in_one_line                            1  the other mistakes
experiments/test_evidence.py
    test_no_more_than_5_percent_of_verdicts_are_false               2  the other outcomes
experiments/test_explain.py
    test_the_command_writes_pictures_and_says_what_the_network_says 0  test_rows_equal_the_maps_of_the_methods
experiments/test_report_page.py
    test_everything_can_be_read                                     4  the other widths and colors
    test_links_lead_to_what_can_be_seen                             1  the other widths
experiments/test_studies.py
    test_tables_and_pictures                                       12  the other worlds of a study
experiments/test_trials.py
    test_what_a_trial_starts_from_runs_first_and_once               0  test_compression_study.py: starts of trials
    test_interrupted_trials_go_on                                   0  train/test_resume.py; test_finished_trials_…
    test_a_mistake_names_the_trial                                  1  the other mistake
models/analysis/test_cost.py
    test_chart_has_all_costs_in_the_order_of_the_computation        0  test_command_line
    test_module_runs_as_a_program                                   0  test_command_line, in the process
    test_mult_adds_of_the_reference                                 3  the other networks
    test_receptive_fields_of_araujo_by_endpoint                     2  the other networks
    test_formulas_equal_the_counts                                  2  the other networks
    test_numbers_do_not_depend_on_how_it_is_computed                3  the other networks
models/compress/test_shrink.py
    test_the_smaller_network_computes_what_the_masked_one_does      2  the other families
models/explain/test_receptive.py
    test_units_see_the_pixels_of_their_box                          5  the other networks
models/kernels/test_native.py
    test_works_without_the_library                                  1  the other reasons
models/kernels/test_runtime.py
    test_the_choice_of_a_cache_by_the_user_is_kept                  1  the other choices
models/layers/test_conv.py
    test_agrees_with_the_plain_convolution                          40  the other shapes
models/test_derivatives.py
    test_a_token_that_nothing_attends_to_changes_nothing            1  the other networks
    test_networks_with_attention_are_differentiated_for_cuda        2  test_gradients_of_attention_are_compiled_for_cuda
    test_gradients_of_attention_are_compiled_for_cuda              24  the other shapes
models/test_hostile.py
    test_the_command_reports_it_in_one_line_and_writes_nothing      0  test_commands_report_it_in_one_line
    test_every_family_names_the_smallest_image_that_it_accepts      3  the other families
    test_the_smallest_image_of_well_known_networks                  2  the other networks
    test_an_empty_batch_gives_no_logits                             6  the other families
models/test_parity.py
    test_exported_names_and_shapes_are_those_of_the_library         7  test_equal
models/test_registry.py
    test_there_are_no_operations_besides_the_ingredients            12  the other kinds
    test_parameters_and_logits_of_every_network                    24  the other networks of a family
    test_every_field_changes_something                             30  models/test_FAMILY.py, test_parity.py
    test_every_kernel_is_drawn_by_init                              8  test_any_network.py
    test_the_training_pass_for_an_accelerator_is_that_of_no_cpu    16  test_dtype_reaches_…
    test_dtype_reaches_every_convolution_and_product               12  the other families
    test_networks_without_norm_normalize_nothing                   12  the other families
models/weights/test_layouts.py
    test_round_trip                                                 27  the other kinds of a layout
models/weights/test_unwrap.py
    test_networks_adopt_the_channels_of_their_file                  9  the other families
    test_import_and_export_of_a_file_with_other_channels            1  the other layouts
train/data/test_hostile.py
    test_a_run_is_not_resumed_with_other_arrays                     2  the other arrays
train/data/test_jpeg.py
    test_pil_decodes_where_native_code_is_missing                   1  the other reasons
train/data/test_prepare.py
    test_a_users_mistake_is_one_line_and_exit_code_2                1  the other mistakes
train/data/test_text.py
    test_mistakes_in_a_config_are_one_line                          6  the other mistakes
train/devices/test_multihost.py
    test_two_processes_of_two_devices_are_one_of_four_and_of_one    1  the other way to lift
train/optim/test_pruning.py
    test_a_network_without_filters_equals_its_smaller_one_after_any_step 0  compress/test_shrink.py, test_any_network.py
    test_the_file_that_pruning_goes_by_belongs_to_the_run           0  test_sensitivity_from_a_file_…
    test_filters_that_cannot_be_removed_are_refused_before_training 1  compress/test_shrink.py
    test_exactly_the_required_number_of_highest_scores_is_kept      6  the other counts
train/plots/test_curves.py
    test_texts_do_not_collide                                       5  the other numbers
train/plots/test_mistakes.py
    test_texts_do_not_collide                                       7  the other numbers
train/test_adaptive.py
    test_the_command                                                0  the other tests of this file, in the process
    test_blockdrop_from_a_network_and_both_from_that                0  train/tasks/test_adaptive.py
train/test_cli.py
    test_mistakes                                                   2  the other mistakes
train/test_export.py
    test_programs_hold_what_was_folded                              0  models/compress/test_fold.py
    test_the_file_gives_back_the_run_to_the_bit                     1  the other formats
    test_every_format_says_what_the_run_says                        2  the other formats
    test_the_commands                                               0  test_reopened.py: train.predict
    test_mistakes                                                   1  the other mistake
train/test_hostile_more.py
    test_weights_that_are_not_finite_are_refused                    4  the other weights
    test_checkpoints_in_a_folder_of_any_name_are_read_again         3  the other names
    test_a_config_that_is_not_a_python_file_is_refused_in_one_line  1  the other files
    test_files_that_are_not_of_runs_are_not_overwritten             3  the other files
train/test_hostile_process.py
    test_tensorboard_has_every_point_once_after_a_kill              2  the other moments
train/test_hostile_texts.py
    test_pictures_show_any_name                                     5  the other names
    test_paths_may_begin_with_a_tilde                               1  the other flags
    test_config_values_of_another_kind_are_one_line                30  the other keys
train/test_hostile_workdir.py
    test_any_damage_to_checkpoints_of_earlier_versions              0  test_checkpoints_of_earlier_versions_…
    test_any_damage_gives_a_checkpoint_bit_by_bit_or_one_line       1  the other seeds
train/test_loop.py
    test_a_mistake_is_one_line_and_nothing_is_written               20  the other mistakes
train/test_published.py
    test_explain_by_name                                            0  test_predict_by_name_and_offline
    test_pushes_that_fail_are_one_line                              1  the other mistakes
train/test_reopened.py
    test_predictions_use_the_class_names_of_the_training            2  the other sources
    test_commands_without_a_data_set                                0  test_a_folder_and_a_bad_file_are_predicted
    test_a_test_set_that_changed_is_reported_where_it_is_used       3  the other commands
train/test_resume.py
    test_sigkill_in_the_middle_of_steps_and_of_saves                0  test_sigterm_…, test_loop.py: test_going_on_…
    test_double_ctrl_c_gives_no_traceback                           1  the other moments
train/test_step.py
    test_a_short_run_evaluates_what_it_learned                      1  the other family
train/tasks/test_adaptive.py
    test_the_loss_of_a_policy_and_its_gradient                      1  the other way to learn
"""
# `make check`: unit tests, which train no runs and start no processes. A file without tests means all its tests, except
# those after a dash.
CHECK = """
test_language.py
docs/test_pages.py
models/analysis/test_exit_policy.py
models/compress/test_archive.py
models/compress/test_codebook.py
models/compress/test_sparse.py
models/layers/test_conv.py
    - test_the_same_bits_every_time
    - test_under_vmap_scan_and_remat
models/layers/test_endpoint.py
models/layers/test_norm.py
    - test_bfloat16_has_float32_statistics_and_parameters
models/test_alexnet.py
models/test_families.py
models/test_lenet.py
models/test_listing.py
models/test_mobilenet.py
    - test_mult_adds_of_howard
    - test_shortcuts_are_where_shapes_stay
models/test_registry.py
    test_mistakes_are_one_line
    test_there_are_no_operations_besides_the_ingredients
    test_the_table_holds_every_registered_name
models/test_resnet.py
models/test_swin.py
    - test_position_bias_acts_on_the_attention_of_its_distance
models/test_vgg.py
models/weights/test_hostile_files.py
models/weights/test_layouts.py
    test_round_trip
    test_mismatch_names_every_array
models/weights/test_torch_files.py
test_architecture.py
train/data/test_background.py
train/data/test_composite.py
train/data/test_folders.py
    test_a_fifth_is_held_out_exactly
    test_links_are_followed_without_endless_loops
    test_two_folders_for_one_split_are_refused
train/data/test_hostile.py
    test_splits_that_do_not_fit_are_refused
    test_derived_sources_are_identified_by_source_and_derivation
train/data/test_pixels.py
    - test_the_crop_of_an_upright_photograph
    - test_runs_from_before_exif_was_applied_ignore_it
train/data/test_select.py
train/data/test_shuffle.py
train/data/test_sources.py
    - test_reading_imports_no_tensorflow
train/data/test_transfer_sets.py
train/optim/test_build.py
train/test_checkpoint.py
    - test_a_kill_in_the_middle_of_a_save_leaves_no_partial_checkpoint
train/test_config.py
train/test_step.py
    test_averaged_weights
    test_each_part_of_each_device_has_its_own_key_and_each_device_its_place
    test_the_decay_of_averages_warms_up
    test_evaluation_is_exact_on_uneven_batches
    test_frozen_parameters_stay
"""


def _rows(table: str) -> Iterator[tuple[str, str]]:
    """Yields (file, content of an indented line); "" where a file has no such lines."""
    for file, lines in re.findall(r"^(\S+)\n((?: +.*\n)*)", table.lstrip("\n"), re.MULTILINE):
        yield from ((file, line.strip()) for line in lines.splitlines() or [""])


KEPT = {(file, line.split()[0]): int(line.split()[1]) for file, line in _rows(FULL)}
UNCHECKED = {(file, line[2:]) for file, line in _rows(CHECK) if line.startswith("- ")}
CHECKED = {(file, "" if line.startswith("- ") else line) for file, line in _rows(CHECK)}


def mark(items: list[pytest.Item]) -> None:
    """Gives tests the markers of their tiers: `full` by FULL, `check` by CHECK."""
    cases = defaultdict(list)
    for item in items:
        file = item.path.relative_to(ROOT).as_posix()
        name = item.name.partition("[")[0]
        if not item.get_closest_marker("full"):
            cases[file, name].append(item)
            if CHECKED & {(file, ""), (file, name)} and (file, name) not in UNCHECKED:
                item.add_marker(pytest.mark.check)
    for key, count in KEPT.items():
        in_tier = {i * len(cases[key]) // count for i in range(count)}
        for i, item in enumerate(cases[key]):
            if i not in in_tier:
                item.add_marker(pytest.mark.full)


def unknown(items: list[pytest.Item]) -> set[str]:
    """Returns the rows of FULL and CHECK that match no test; for a session that collects all tests."""
    names = {(item.path.relative_to(ROOT).as_posix(), item.name.partition("[")[0]) for item in items}
    files = {(file, "") for file, _ in names}
    return {"::".join(row) for row in (KEPT.keys() | CHECKED | UNCHECKED) - names - files}


def keep_first(count: int, values: Iterable[Any]) -> list[Any]:
    """Returns test parameters: the first `count` of the values as they are, and the others marked `full`."""
    values = list(values)
    return keep(values[:count], values)


def keep(these: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Returns test parameters: `these` of the values as they are, and the others marked `full`."""
    return [
        value
        if value in these
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
        for value in values
    ]
