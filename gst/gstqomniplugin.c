/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The plugin: registers its elements and does nothing else. No device, no file
 * and no environment is looked at here, so that the registry's scanner cannot
 * fail on any machine.
 */
#include "gstqomniaudioenc.h"
#include "gstqomnibin.h"
#include "gstqomnitalker.h"
#include "gstqomnithinker.h"
#include "gstqomnivisionenc.h"

static gboolean
plugin_init (GstPlugin * plugin)
{
  gboolean any = FALSE;

  any |= GST_ELEMENT_REGISTER (qomniaudioenc, plugin);
  any |= GST_ELEMENT_REGISTER (qomnivisionenc, plugin);
  any |= GST_ELEMENT_REGISTER (qomnithinker, plugin);
  any |= GST_ELEMENT_REGISTER (qomnitalker, plugin);
  any |= GST_ELEMENT_REGISTER (qomnibin, plugin);
  return any;
}

GST_PLUGIN_DEFINE (GST_VERSION_MAJOR, GST_VERSION_MINOR, qomni,
    "Qwen3-Omni: sound, pictures and text in, text and speech out",
    plugin_init, PACKAGE_VERSION, "LGPL", "qomni", PACKAGE_ORIGIN)
